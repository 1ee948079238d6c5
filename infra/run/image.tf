# The instance's image: Oracle Linux with the NVIDIA driver, the newest for the shape. OKE's images are for its nodes.

data "oci_core_images" "candidates" {
  count = var.os_image_id == null ? 1 : 0

  compartment_id   = var.compartment_ocid
  operating_system = "Oracle Linux"
  shape            = var.shape
  state            = "AVAILABLE"
  sort_by          = "TIMECREATED"
  sort_order       = "DESC"

  filter {
    name   = "display_name"
    values = [var.gpu ? "^Oracle-Linux-[89]\\.[0-9]+-.*Gen2-GPU-" : "^Oracle-Linux-[89]\\.[0-9]+-20"]
    regex  = true
  }
}

locals {
  found       = [for each in try(data.oci_core_images.candidates[0].images, []) : each.id if !strcontains(each.display_name, "-OKE-")]
  os_image_id = var.os_image_id != null ? var.os_image_id : try(local.found[0], null)
}
