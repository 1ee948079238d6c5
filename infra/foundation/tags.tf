# Defined tags, since rights go by them: who may use this namespace decides who may launch runs.

resource "oci_identity_tag_namespace" "this" {
  provider = oci.home

  compartment_id = var.compartment_ocid
  name           = var.tag_namespace
  description    = "Instances of ${var.name}: which run, whose, until when"
}

locals {
  tags = {
    role    = "Always run; the dynamic group and the right to terminate go by it"
    run_id  = "The run's id; splits the bill by run"
    owner   = "Who submitted the run"
    expires = "When the instance must be gone (RFC 3339); sweep ends what outlived it"
  }
}

resource "oci_identity_tag" "this" {
  for_each = local.tags
  provider = oci.home

  tag_namespace_id = oci_identity_tag_namespace.this.id
  name             = each.key
  description      = each.value
  is_cost_tracking = each.key == "run_id"

  dynamic "validator" {
    for_each = each.key == "role" ? ["run"] : []

    content {
      validator_type = "ENUM"
      values         = [validator.value]
    }
  }
}
