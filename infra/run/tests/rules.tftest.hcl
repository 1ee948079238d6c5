# What a run refuses before anything is paid for; nothing is applied. Values are wrong all at once, for a run costs half a
# second, and each must be refused; rules among several of them are a run each.

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

run "wrong_values_are_refused" {
  command = plan
  variables {
    tenancy_ocid        = "ocid1.compartment.oc1..example"
    compartment_ocid    = "ocid1.tenancy.oc1..example"
    region              = "FRA"
    subnet_id           = "ocid1.vcn.oc1..example"
    subnet_cidr         = "10.0.0.0"
    nsg_id              = "ocid1.securitylist.oc1..example"
    store_uri           = "runs"
    compute_cluster_id  = "ocid1.clusternetwork.oc1..example"
    toolkit             = "http://example.com/toolkit.rpm"
    toolkit_sha256      = "abc"
    run_id              = "Demo/1"
    owner               = "Jane Doe"
    image               = "fra.ocir.io/example/gpu-job:latest"
    image_cuda          = "11.8"
    image_arches        = ["8.6"]
    image_gb            = 0
    command             = []
    environment         = { "a b" = "c" }
    shape               = "A10"
    shape_fallbacks     = ["VM.A.1", "VM.A.2", "VM.A.3", "VM.A.4", "VM.A.5", "VM.A.6", "VM.A.7", "VM.A.8", "VM.A.9", "VM.A.10"]
    fault_domain        = "FAULT-DOMAIN-4"
    nodes               = 1.5
    rendezvous_port     = 22
    os_image_id         = "fra.ocir.io/example/gpu-job"
    boot_volume_gb      = 40
    boot_volume_vpus    = 0
    shm_gb              = 0
    max_duration        = 60
    launched            = "today"
    boot_timeout        = 10
    first_step_timeout  = 1
    stop_grace          = 1
    max_restarts        = -1
    namespace           = "two words"
    bucket              = "a/b"
    nodes_nsg_id        = "ocid1.subnet.oc1..example"
    subnet_domain       = "runs"
    tag_namespace       = "gpu.job"
    availability_domain = "AD-1"
    ocpus               = 0.5
    memory_gb           = 0
    log_id              = "ocid1.loggroup.oc1..example"
    topic_id            = "gpu-job"
    config_file_profile = "[DEFAULT]"
  }
  expect_failures = [
    var.tenancy_ocid,
    var.compartment_ocid,
    var.region,
    var.subnet_id,
    var.subnet_cidr,
    var.nsg_id,
    var.store_uri,
    var.compute_cluster_id,
    var.toolkit,
    var.toolkit_sha256,
    var.run_id,
    var.owner,
    var.image,
    var.image_cuda,
    var.image_arches,
    var.image_gb,
    var.command,
    var.environment,
    var.shape,
    var.shape_fallbacks,
    var.fault_domain,
    var.nodes,
    var.rendezvous_port,
    var.os_image_id,
    var.boot_volume_gb,
    var.boot_volume_vpus,
    var.shm_gb,
    var.max_duration,
    var.launched,
    var.boot_timeout,
    var.first_step_timeout,
    var.stop_grace,
    var.max_restarts,
    var.namespace,
    var.bucket,
    var.nodes_nsg_id,
    var.subnet_domain,
    var.tag_namespace,
    var.availability_domain,
    var.ocpus,
    var.memory_gb,
    var.log_id,
    var.topic_id,
    var.config_file_profile,
  ]
}

run "other_wrong_values_are_refused" {
  command = plan
  variables {
    command     = ["run\nrm"]
    environment = { OCI_AUTH_TOKEN = "abc" }
  }
  expect_failures = [
    var.command,
    var.environment,
  ]
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
