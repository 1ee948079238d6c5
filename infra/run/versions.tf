# Terraform 1.5 is what Resource Manager runs; the tests in tests/ need 1.9 for overrides and mocks.
terraform {
  required_version = ">= 1.5.0"

  required_providers {
    oci = {
      source  = "oracle/oci"
      version = "~> 8.28"
    }
  }
}

# Resource Manager signs in by itself. Elsewhere keys stay in ~/.oci/config; none is a variable here.
provider "oci" {
  region              = var.region
  config_file_profile = var.config_file_profile

  # An hour of repeated launches is not what is wanted when there is no capacity: submit tries elsewhere.
  disable_auto_retries = true
}
