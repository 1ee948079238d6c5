# The capacity report suggests; where it finds nothing, the first choice is tried all the same.

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

run "every_place_is_asked_about_and_without_an_answer_the_first_is_tried" {
  command = apply
  assert {
    condition     = output.shape == "VM.GPU.A10.1" && output.availability_domain == "Uocm:EU-FRANKFURT-1-AD-1"
    error_message = "The first shape and domain are not tried."
  }
  assert {
    condition     = length(output.offers) == 6
    error_message = "Two shapes in three domains are six offers."
  }
}
