# Alone in its file: runs of a file share a state, and a report is overridden only where it is new.

variables {
  tenancy_ocid     = "ocid1.tenancy.oc1..example"
  compartment_ocid = "ocid1.compartment.oc1..example"
  region           = "eu-frankfurt-1"
  namespace        = "example"
  bucket           = "gpu-job"
  subnet_id        = "ocid1.subnet.oc1..example"
  nsg_id           = "ocid1.networksecuritygroup.oc1..example"
  nodes_nsg_id     = "ocid1.networksecuritygroup.oc1..nodes"
  run_id           = "demo-20261124-1a2b3c"
  image            = "fra.ocir.io/example/gpu-job@sha256:0000000000000000000000000000000000000000000000000000000000000000"
  shape            = "VM.GPU.A10.1"
  max_duration     = 7200
  launched         = "2026-11-24T12:00:00Z"

  shape_fallbacks = ["VM.GPU.A10.2"]
}

run "a_fallback_is_taken_where_the_first_shape_has_no_room" {
  command = apply
  override_resource {
    target = oci_core_compute_capacity_report.this["VM.GPU.A10.1 in Uocm:EU-FRANKFURT-1-AD-1"]
    values = {
      shape_availabilities = { availability_status = "OUT_OF_HOST_CAPACITY" }
    }
  }
  override_resource {
    target = oci_core_compute_capacity_report.this["VM.GPU.A10.2 in Uocm:EU-FRANKFURT-1-AD-1"]
    values = {
      shape_availabilities = { availability_status = "OUT_OF_HOST_CAPACITY" }
    }
  }
  override_resource {
    target = oci_core_compute_capacity_report.this["VM.GPU.A10.1 in Uocm:EU-FRANKFURT-1-AD-2"]
    values = {
      shape_availabilities = { availability_status = "OUT_OF_HOST_CAPACITY" }
    }
  }
  override_resource {
    target = oci_core_compute_capacity_report.this["VM.GPU.A10.2 in Uocm:EU-FRANKFURT-1-AD-2"]
    values = {
      shape_availabilities = { availability_status = "AVAILABLE" }
    }
  }
  override_resource {
    target = oci_core_compute_capacity_report.this["VM.GPU.A10.1 in Uocm:EU-FRANKFURT-1-AD-3"]
    values = {
      shape_availabilities = { availability_status = "OUT_OF_HOST_CAPACITY" }
    }
  }
  override_resource {
    target = oci_core_compute_capacity_report.this["VM.GPU.A10.2 in Uocm:EU-FRANKFURT-1-AD-3"]
    values = {
      shape_availabilities = { availability_status = "AVAILABLE" }
    }
  }
  assert {
    condition     = output.shape == "VM.GPU.A10.2" && output.availability_domain == "Uocm:EU-FRANKFURT-1-AD-2" && output.usd_per_hour == 4
    error_message = "The fallback is not taken."
  }
}
