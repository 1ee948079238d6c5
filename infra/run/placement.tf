# Where to launch. Given, it is taken; else a capacity report suggests: the first shape that has room, and of its
# availability domains the first. The report is a snapshot and has been wrong both ways, so where it finds nothing the
# first choice is tried all the same. One apply is one try: submit walks the matrix, giving the domain itself.

data "oci_identity_availability_domains" "all" {
  compartment_id = var.tenancy_ocid
}

locals {
  domains = data.oci_identity_availability_domains.all.availability_domains[*].name
  asked   = var.availability_domain == null ? toset(local.domains) : toset([])
}

resource "oci_core_compute_capacity_report" "this" {
  for_each = local.asked

  availability_domain = each.key
  compartment_id      = var.tenancy_ocid

  dynamic "shape_availabilities" {
    for_each = local.candidates

    content {
      instance_shape = shape_availabilities.value
      fault_domain   = var.fault_domain

      dynamic "instance_shape_config" {
        for_each = endswith(shape_availabilities.value, ".Flex") ? [1] : []

        content {
          ocpus         = var.ocpus
          memory_in_gbs = var.memory_gb
        }
      }
    }
  }
}

locals {
  offers = flatten([
    for shape in local.candidates : [
      for domain in local.domains : [
        for each in oci_core_compute_capacity_report.this[domain].shape_availabilities : {
          shape               = shape
          availability_domain = domain
          status              = each.availability_status
        } if each.instance_shape == shape
      ]
    ] if var.availability_domain == null
  ])
  fallback = {
    shape               = var.shape
    availability_domain = coalesce(var.availability_domain, local.domains[0])
    status              = "not asked"
  }
  choice = concat([for each in local.offers : each if each.status == "AVAILABLE"], [local.fallback])[0]
}
