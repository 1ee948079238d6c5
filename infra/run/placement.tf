# Where to launch. Given, it is taken; else a capacity report suggests: the first shape that has room, and of its
# availability domains the first. The report is a snapshot and has been wrong both ways, so where it finds nothing the
# first choice is tried all the same. One apply is one try: submit walks the matrix, giving the domain itself.

data "oci_identity_availability_domains" "all" {
  compartment_id = var.tenancy_ocid
}

locals {
  domains = data.oci_identity_availability_domains.all.availability_domains[*].name
  asked = var.availability_domain != null ? [] : [
    for pair in setproduct(local.candidates, local.domains) : { shape = pair[0], availability_domain = pair[1] }
  ]
}

resource "oci_core_compute_capacity_report" "this" {
  for_each = { for each in local.asked : "${each.shape} in ${each.availability_domain}" => each }

  availability_domain = each.value.availability_domain
  compartment_id      = var.tenancy_ocid

  shape_availabilities {
    instance_shape = each.value.shape
    fault_domain   = var.fault_domain

    dynamic "instance_shape_config" {
      for_each = endswith(each.value.shape, ".Flex") ? [1] : []

      content {
        ocpus         = var.ocpus
        memory_in_gbs = var.memory_gb
      }
    }
  }
}

locals {
  offers = [for each in local.asked : merge(each, {
    status = oci_core_compute_capacity_report.this["${each.shape} in ${each.availability_domain}"].shape_availabilities[0].availability_status
  })]
  fallback = {
    shape               = var.shape
    availability_domain = coalesce(var.availability_domain, local.domains[0])
    status              = "not asked"
  }
  choice = concat([for each in local.offers : each if each.status == "AVAILABLE"], [local.fallback])[0]
}
