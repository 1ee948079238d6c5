# What the foundation refuses, each with its sentence. No tenancy is needed: nothing is applied.

variables {
  tenancy_ocid     = "ocid1.tenancy.oc1..example"
  compartment_ocid = "ocid1.compartment.oc1..example"
  region           = "eu-frankfurt-1"
}

run "plain_values_pass" {
  command = plan
}

run "a_tenancy_is_no_compartment" {
  command = plan
  variables {
    compartment_ocid = "ocid1.tenancy.oc1..example"
  }
  expect_failures = [var.compartment_ocid]
}

run "tenancy_is_a_tenancy" {
  command = plan
  variables {
    tenancy_ocid = "ocid1.compartment.oc1..example"
  }
  expect_failures = [var.tenancy_ocid]
}

run "region_is_a_name" {
  command = plan
  variables {
    region = "FRA"
  }
  expect_failures = [var.region]
}

run "name_has_no_capitals" {
  command = plan
  variables {
    name = "GPU-Job"
  }
  expect_failures = [var.name]
}

run "bucket_name_has_no_capitals" {
  command = plan
  variables {
    bucket_name = "MyBucket"
  }
  expect_failures = [var.bucket_name]
}

run "prefix_is_not_the_launches_folder" {
  command = plan
  variables {
    prefix = "launches"
  }
  expect_failures = [var.prefix]
}

run "prefix_is_one_segment" {
  command = plan
  variables {
    prefix = "team/runs"
  }
  expect_failures = [var.prefix]
}

run "tag_namespace_has_no_dots" {
  command = plan
  variables {
    tag_namespace = "gpu.job"
  }
  expect_failures = [var.tag_namespace]
}

run "vcn_is_not_too_large" {
  command = plan
  variables {
    vcn_cidr = "10.0.0.0/8"
  }
  expect_failures = [var.vcn_cidr]
}

run "vcn_is_a_range" {
  command = plan
  variables {
    vcn_cidr = "10.0.0.0"
  }
  expect_failures = [var.vcn_cidr]
}

run "checkpoints_live_a_day" {
  command = plan
  variables {
    checkpoint_days = 0
  }
  expect_failures = [var.checkpoint_days]
}

run "versions_live_a_day" {
  command = plan
  variables {
    version_days = 0.5
  }
  expect_failures = [var.version_days]
}

run "kms_key_is_a_key" {
  command = plan
  variables {
    kms_key_id = "ocid1.vault.oc1..example"
  }
  expect_failures = [var.kms_key_id]
}

run "log_days_are_months" {
  command = plan
  variables {
    log_days = 31
  }
  expect_failures = [var.log_days]
}

run "email_is_one_address" {
  command = plan
  variables {
    email = "team"
  }
  expect_failures = [var.email]
}

run "budget_is_whole" {
  command = plan
  variables {
    budget = 99.5
  }
  expect_failures = [var.budget]
}

run "alert_comes_before_the_end" {
  command = plan
  variables {
    budget_alert_percent = 120
  }
  expect_failures = [var.budget_alert_percent]
}

run "toolkit_package_exists" {
  command = plan
  variables {
    toolkit_package = "nowhere/toolkit.rpm"
  }
  expect_failures = [var.toolkit_package]
}

run "rdma_domain_has_its_prefix" {
  command = plan
  variables {
    rdma_availability_domain = "AD-1"
  }
  expect_failures = [var.rdma_availability_domain]
}
