# What the foundation refuses; nothing is applied. Values are wrong all at once, for a run costs half a second, and each
# must be refused.

variables {
  tenancy_ocid     = "ocid1.tenancy.oc1..example"
  compartment_ocid = "ocid1.compartment.oc1..example"
  region           = "eu-frankfurt-1"
}

run "plain_values_pass" {
  command = plan
}

run "wrong_values_are_refused" {
  command = plan
  variables {
    compartment_ocid         = "ocid1.tenancy.oc1..example"
    tenancy_ocid             = "ocid1.compartment.oc1..example"
    region                   = "FRA"
    name                     = "GPU-Job"
    bucket_name              = "MyBucket"
    prefix                   = "launches"
    tag_namespace            = "gpu.job"
    vcn_cidr                 = "10.0.0.0/8"
    checkpoint_days          = 0
    version_days             = 0.5
    kms_key_id               = "ocid1.vault.oc1..example"
    log_days                 = 31
    email                    = "team"
    budget                   = 99.5
    budget_alert_percent     = 120
    toolkit_package          = "nowhere/toolkit.rpm"
    rdma_availability_domain = "AD-1"
    home_region              = "FRA"
    tags                     = { "cost center" = "42" }
    config_file_profile      = "[DEFAULT]"
  }
  expect_failures = [
    var.compartment_ocid,
    var.tenancy_ocid,
    var.region,
    var.name,
    var.bucket_name,
    var.prefix,
    var.tag_namespace,
    var.vcn_cidr,
    var.checkpoint_days,
    var.version_days,
    var.kms_key_id,
    var.log_days,
    var.email,
    var.budget,
    var.budget_alert_percent,
    var.toolkit_package,
    var.rdma_availability_domain,
    var.home_region,
    var.tags,
    var.config_file_profile,
  ]
}

run "other_wrong_values_are_refused" {
  command = plan
  variables {
    prefix   = "team/runs"
    vcn_cidr = "10.0.0.0"
  }
  expect_failures = [
    var.prefix,
    var.vcn_cidr,
  ]
}
