# What a run refuses before anything is paid for: one rule a run. No tenancy is needed: nothing is applied.

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

  availability_domain = "Uocm:EU-FRANKFURT-1-AD-1"
}

run "plain_values_pass" {
  command = plan
}

run "tenancy_is_a_tenancy" {
  command = plan
  variables {
    tenancy_ocid = "ocid1.compartment.oc1..example"
  }
  expect_failures = [var.tenancy_ocid]
}

run "compartment_is_a_compartment" {
  command = plan
  variables {
    compartment_ocid = "ocid1.tenancy.oc1..example"
  }
  expect_failures = [var.compartment_ocid]
}

run "region_is_a_name" {
  command = plan
  variables {
    region = "FRA"
  }
  expect_failures = [var.region]
}

run "subnet_is_a_subnet" {
  command = plan
  variables {
    subnet_id = "ocid1.vcn.oc1..example"
  }
  expect_failures = [var.subnet_id]
}

run "subnet_cidr_is_a_range" {
  command = plan
  variables {
    subnet_cidr = "10.0.0.0"
  }
  expect_failures = [var.subnet_cidr]
}

run "nsg_is_a_group" {
  command = plan
  variables {
    nsg_id = "ocid1.securitylist.oc1..example"
  }
  expect_failures = [var.nsg_id]
}

run "store_is_one" {
  command = plan
  variables {
    store_uri = "runs"
  }
  expect_failures = [var.store_uri]
}

run "compute_cluster_is_no_cluster_network" {
  command = plan
  variables {
    compute_cluster_id = "ocid1.clusternetwork.oc1..example"
  }
  expect_failures = [var.compute_cluster_id]
}

run "toolkit_is_not_fetched_in_the_clear" {
  command = plan
  variables {
    toolkit = "http://example.com/toolkit.rpm"
  }
  expect_failures = [var.toolkit]
}

run "toolkit_sha256_is_a_checksum" {
  command = plan
  variables {
    toolkit_sha256 = "abc"
  }
  expect_failures = [var.toolkit_sha256]
}

run "run_id_is_an_object_name" {
  command = plan
  variables {
    run_id = "Demo/1"
  }
  expect_failures = [var.run_id]
}

run "owner_is_a_tag" {
  command = plan
  variables {
    owner = "Jane Doe"
  }
  expect_failures = [var.owner]
}

run "image_names_its_digest" {
  command = plan
  variables {
    image = "fra.ocir.io/example/gpu-job:latest"
  }
  expect_failures = [var.image]
}

run "cuda_is_known" {
  command = plan
  variables {
    image_cuda = "11.8"
  }
  expect_failures = [var.image_cuda]
}

run "arches_are_names" {
  command = plan
  variables {
    image_arches = ["8.6"]
  }
  expect_failures = [var.image_arches]
}

run "image_has_a_size" {
  command = plan
  variables {
    image_gb = 0
  }
  expect_failures = [var.image_gb]
}

run "command_has_words" {
  command = plan
  variables {
    command = []
  }
  expect_failures = [var.command]
}

run "command_has_no_line_break" {
  command = plan
  variables {
    command = ["run\nrm"]
  }
  expect_failures = [var.command]
}

run "environment_has_proper_names" {
  command = plan
  variables {
    environment = { "a b" = "c" }
  }
  expect_failures = [var.environment]
}

run "environment_has_no_secret" {
  command = plan
  variables {
    environment = { OCI_AUTH_TOKEN = "abc" }
  }
  expect_failures = [var.environment]
}

run "shape_is_a_name" {
  command = plan
  variables {
    shape = "A10"
  }
  expect_failures = [var.shape]
}

run "fallbacks_are_few" {
  command = plan
  variables {
    shape_fallbacks = ["VM.A.1", "VM.A.2", "VM.A.3", "VM.A.4", "VM.A.5", "VM.A.6", "VM.A.7", "VM.A.8", "VM.A.9", "VM.A.10"]
  }
  expect_failures = [var.shape_fallbacks]
}

run "fault_domain_exists" {
  command = plan
  variables {
    fault_domain = "FAULT-DOMAIN-4"
  }
  expect_failures = [var.fault_domain]
}

run "nodes_are_whole" {
  command = plan
  variables {
    nodes = 1.5
  }
  expect_failures = [var.nodes]
}

run "rendezvous_port_is_let_through" {
  command = plan
  variables {
    rendezvous_port = 22
  }
  expect_failures = [var.rendezvous_port]
}

run "os_image_is_no_container_image" {
  command = plan
  variables {
    os_image_id = "fra.ocir.io/example/gpu-job"
  }
  expect_failures = [var.os_image_id]
}

run "boot_volume_is_offered" {
  command = plan
  variables {
    boot_volume_gb = 40
  }
  expect_failures = [var.boot_volume_gb]
}

run "boot_volume_is_not_the_slowest" {
  command = plan
  variables {
    boot_volume_vpus = 0
  }
  expect_failures = [var.boot_volume_vpus]
}

run "shm_is_not_dockers" {
  command = plan
  variables {
    shm_gb = 0
  }
  expect_failures = [var.shm_gb]
}

run "max_duration_lets_it_boot" {
  command = plan
  variables {
    max_duration = 60
  }
  expect_failures = [var.max_duration]
}

run "launched_is_a_time" {
  command = plan
  variables {
    launched = "today"
  }
  expect_failures = [var.launched]
}

run "boot_timeout_lets_it_pull" {
  command = plan
  variables {
    boot_timeout = 10
  }
  expect_failures = [var.boot_timeout]
}

run "first_step_timeout_lets_it_load" {
  command = plan
  variables {
    first_step_timeout = 1
  }
  expect_failures = [var.first_step_timeout]
}

run "stop_grace_lets_it_save" {
  command = plan
  variables {
    stop_grace = 1
  }
  expect_failures = [var.stop_grace]
}

run "restarts_are_counted" {
  command = plan
  variables {
    max_restarts = -1
  }
  expect_failures = [var.max_restarts]
}

run "refuses_a_cpu_shape_with_a_gpu_job" {
  command = plan
  variables {
    shape = "VM.Standard.E5.Flex"
  }
  expect_failures = [oci_core_instance.node]
}

run "refuses_a_cpu_shape_among_the_fallbacks" {
  command = plan
  variables {
    shape_fallbacks = ["VM.Standard.E5.Flex"]
  }
  expect_failures = [oci_core_instance.node]
}

run "refuses_a_gpu_shape_without_need" {
  command = plan
  variables {
    gpu = false
  }
  expect_failures = [oci_core_instance.node]
}

run "refuses_a_gpu_for_an_image_without_cuda" {
  command = plan
  variables {
    image_cuda = null
  }
  expect_failures = [oci_core_instance.node]
}

run "refuses_preemptible_where_oracle_has_none" {
  command = plan
  variables {
    preemptible = true
  }
  expect_failures = [oci_core_instance.node]
}

run "refuses_preemptible_for_one_of_two" {
  command = plan
  variables {
    shape           = "VM.GPU3.1"
    shape_fallbacks = ["VM.GPU.A10.1"]
    preemptible     = true
    image_cuda      = "12.6"
    image_arches    = ["sm_70", "sm_86"]
  }
  expect_failures = [oci_core_instance.node]
}

run "refuses_cuda_13_on_pascal" {
  command = plan
  variables {
    shape = "VM.GPU2.1"
  }
  expect_failures = [oci_core_instance.node]
}

run "refuses_cuda_13_on_volta" {
  command = plan
  variables {
    shape = "VM.GPU3.1"
  }
  expect_failures = [oci_core_instance.node]
}

run "refuses_code_for_86_only_on_hopper" {
  command = plan
  variables {
    shape        = "BM.GPU.H100.8"
    image_arches = ["sm_86"]
  }
  expect_failures = [oci_core_instance.node]
}

run "refuses_code_for_86_only_on_an_a100" {
  command = plan
  variables {
    shape        = "BM.GPU4.8"
    image_arches = ["sm_86"]
  }
  expect_failures = [oci_core_instance.node]
}

run "refuses_amd" {
  command = plan
  variables {
    shape = "BM.GPU.MI300X.8"
  }
  expect_failures = [oci_core_instance.node]
}

run "refuses_arm" {
  command = plan
  variables {
    shape = "BM.GPU.GB200.4"
  }
  expect_failures = [oci_core_instance.node]
}

run "refuses_image_does_not_fit_the_boot_volume" {
  command = plan
  variables {
    boot_volume_gb = 60
  }
  expect_failures = [oci_core_instance.node]
}

run "refuses_shm_is_not_all_the_memory" {
  command = plan
  variables {
    shm_gb = 200
  }
  expect_failures = [oci_core_instance.node]
}

run "refuses_toolkit_without_checksum" {
  command = plan
  variables {
    toolkit = "packages/toolkit.rpm"
  }
  expect_failures = [oci_core_instance.node]
}

run "refuses_nodes_that_cannot_meet" {
  command = plan
  variables {
    nodes        = 2
    nodes_nsg_id = null
  }
  expect_failures = [oci_core_instance.node]
}

run "refuses_preemptible_nodes" {
  command = plan
  variables {
    nodes        = 2
    shape        = "VM.GPU3.1"
    preemptible  = true
    image_cuda   = "12.6"
    image_arches = ["sm_70"]
  }
  expect_failures = [oci_core_instance.node]
}

run "refuses_rdma_without_rdma" {
  command = plan
  variables {
    nodes              = 2
    compute_cluster_id = "ocid1.computecluster.oc1..example"
  }
  expect_failures = [oci_core_instance.node]
}

run "refuses_rdma_for_one_node" {
  command = plan
  variables {
    shape              = "BM.GPU.H100.8"
    compute_cluster_id = "ocid1.computecluster.oc1..example"
  }
  expect_failures = [oci_core_instance.node]
}

run "refuses_rdma_without_its_domain" {
  command = plan
  variables {
    nodes               = 2
    shape               = "BM.GPU.H100.8"
    compute_cluster_id  = "ocid1.computecluster.oc1..example"
    availability_domain = null
  }
  expect_failures = [oci_core_instance.node]
}

run "refuses_a_domain_of_another_tenancy" {
  command = plan
  variables {
    availability_domain = "Abcd:EU-FRANKFURT-1-AD-1"
  }
  expect_failures = [oci_core_instance.node]
}

run "refuses_max_duration_before_the_first_step" {
  command = plan
  variables {
    max_duration = 1200
  }
  expect_failures = [oci_core_instance.node]
}

run "refuses_more_than_cloud_init_holds" {
  command = plan
  variables {
    environment = { LONG = join("", [for each in range(1000) : "too long by far"]) }
  }
  expect_failures = [oci_core_instance.node]
}

run "refuses_where_no_image_is_offered" {
  command = plan
  override_data {
    target = data.oci_core_images.candidates
    values = {
      images = []
    }
  }
  expect_failures = [oci_core_instance.node]
}
