# What is looked up, and what every file here shares.

data "oci_identity_region_subscriptions" "all" {
  tenancy_id = var.tenancy_ocid
}

data "oci_identity_regions" "all" {}

data "oci_objectstorage_namespace" "this" {
  compartment_id = var.compartment_ocid
}

locals {
  home_region = coalesce(var.home_region, one([
    for each in data.oci_identity_region_subscriptions.all.region_subscriptions : each.region_name if each.is_home_region
  ]))
  region_key    = lower(one([for each in data.oci_identity_regions.all.regions : each.key if each.name == var.region]))
  namespace     = data.oci_objectstorage_namespace.this.namespace
  bucket        = coalesce(var.bucket_name, var.name)
  freeform_tags = merge({ project = var.name }, var.tags)
}
