# Private, and a tag once pushed keeps its content. Runs pull by digest all the same.
resource "oci_artifacts_container_repository" "this" {
  compartment_id = var.compartment_ocid
  display_name   = var.name
  is_public      = false
  is_immutable   = true
  freeform_tags  = local.freeform_tags
}
