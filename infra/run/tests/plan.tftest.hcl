# What a run launches. The domain is given here, so that values are known at plan.

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

run "an_ordinary_run" {
  command = apply
  assert {
    condition     = oci_core_instance.node[0].create_vnic_details[0].assign_public_ip == "false" && oci_core_instance.node[0].create_vnic_details[0].nsg_ids == toset(["ocid1.networksecuritygroup.oc1..example"])
    error_message = "The instance has a public address or another group."
  }
  assert {
    condition     = oci_core_instance.node[0].instance_options[0].are_legacy_imds_endpoints_disabled
    error_message = "IMDSv1 answers to any program without a header."
  }
  assert {
    condition     = keys(oci_core_instance.node[0].metadata) == tolist(["user_data"])
    error_message = "Metadata has more than cloud-init."
  }
  assert {
    condition     = !oci_core_instance.node[0].preserve_boot_volume
    error_message = "A boot volume would be left over and billed."
  }
  assert {
    condition     = oci_core_instance.node[0].defined_tags == tomap({ "gpu_job.role" = "run", "gpu_job.run_id" = "demo-20261124-1a2b3c", "gpu_job.owner" = "unknown", "gpu_job.expires" = "2026-11-24T14:00:00Z" })
    error_message = "list, sweep and the dynamic group go by these tags."
  }
  assert {
    condition     = output.expires == "2026-11-24T14:00:00Z"
    error_message = "The deadline is not launch plus max_duration."
  }
  assert {
    condition     = length(oci_core_instance.node[0].preemptible_instance_config) == 0
    error_message = "The instance may be taken away though nobody asked."
  }
  assert {
    condition     = output.rendezvous == null && !strcontains(base64decode(yamldecode(output.user_data[0]).write_files[1].content), "JOB_NODE")
    error_message = "A single node waits for others."
  }
  assert {
    condition     = length(oci_core_instance.node[0].metadata["user_data"]) < 32000 && length(output.user_data[0]) <= 16384
    error_message = "OCI takes 32,000 bytes of metadata."
  }
  assert {
    condition     = yamldecode(output.user_data[0]).runcmd == [["/usr/local/sbin/gpu-job", "arm"]] && contains(yamldecode(output.user_data[0]).bootcmd[0], "--on-active=7200")
    error_message = "The watchdog does not come first."
  }
}

run "preemptible_for_volta" {
  command = plan
  variables {
    shape        = "VM.GPU3.1"
    preemptible  = true
    image_cuda   = "12.6"
    image_arches = ["sm_70"]
  }
  assert {
    condition     = oci_core_instance.node[0].preemptible_instance_config[0].preemption_action[0].type == "TERMINATE" && !oci_core_instance.node[0].preemptible_instance_config[0].preemption_action[0].preserve_boot_volume
    error_message = "A preempted instance would leave its boot volume."
  }
  assert {
    condition     = output.usd_per_hour == 2.95 / 2
    error_message = "Preemptible is half the price."
  }
  assert {
    condition     = strcontains(base64decode(yamldecode(output.user_data[0]).write_files[0].content), "MIN_DRIVER='525'")
    error_message = "CUDA 12 needs branch 525."
  }
}

run "domain_and_fault_domain_are_taken" {
  command = plan
  variables {
    availability_domain = "Uocm:EU-FRANKFURT-1-AD-2"
    fault_domain        = "FAULT-DOMAIN-3"
  }
  assert {
    condition     = oci_core_instance.node[0].availability_domain == "Uocm:EU-FRANKFURT-1-AD-2" && oci_core_instance.node[0].fault_domain == "FAULT-DOMAIN-3" && length(oci_core_compute_capacity_report.this) == 0
    error_message = "A try goes elsewhere than asked, or asks for a report it has no use for."
  }
}

run "preemptible_can_be_forced" {
  command = plan
  variables {
    preemptible = true
    force       = true
  }
  assert {
    condition     = length(oci_core_instance.node[0].preemptible_instance_config) == 1
    error_message = "force does not force."
  }
}

run "code_for_80_runs_on_an_l40s" {
  command = plan
  variables {
    shape        = "BM.GPU.L40S.4"
    image_arches = ["sm_80"]
  }
  assert {
    condition     = oci_core_instance.node[0].shape == "BM.GPU.L40S.4"
    error_message = "sm_89 runs code for sm_80 and sm_86."
  }
}

run "code_for_100_runs_on_a_b300" {
  command = plan
  variables {
    shape = "BM.GPU.B300.8"
  }
  assert {
    condition     = oci_core_instance.node[0].shape == "BM.GPU.B300.8"
    error_message = "sm_103 runs code for sm_100."
  }
}

run "a_shape_that_is_not_in_the_table" {
  command = plan
  variables {
    shape = "VM.GPU.NEW.1"
  }
  assert {
    condition     = oci_core_instance.node[0].shape == "VM.GPU.NEW.1" && output.usd_per_hour == null
    error_message = "Oracle has shapes before the table does; the API decides."
  }
}

run "gpu_image_and_not_okes" {
  command = plan
  override_data {
    target = data.oci_core_images.candidates
    values = {
      images = [
        { id = "ocid1.image.oc1..oke", display_name = "Oracle-Linux-9.7-Gen2-GPU-2026.07.01-0-OKE-1.34" },
        { id = "ocid1.image.oc1..new", display_name = "Oracle-Linux-9.7-Gen2-GPU-2026.06.15-0" },
        { id = "ocid1.image.oc1..old", display_name = "Oracle-Linux-8.10-Gen2-GPU-2025.09.16-0" },
      ]
    }
  }
  assert {
    condition     = output.os_image_id == "ocid1.image.oc1..new"
    error_message = "The newest Gen2-GPU image that is not OKE's is wanted."
  }
}

run "image_can_be_pinned" {
  command = plan
  variables {
    os_image_id = "ocid1.image.oc1..mine"
  }
  assert {
    condition     = output.os_image_id == "ocid1.image.oc1..mine" && length(data.oci_core_images.candidates) == 0
    error_message = "A given image is taken without a look-up."
  }
}

run "nodes_meet_by_name" {
  command = plan
  variables {
    nodes = 3
  }
  assert {
    condition     = output.rendezvous == "${oci_core_instance.node[0].create_vnic_details[0].hostname_label}.runs.gpujob.oraclevcn.com:29400"
    error_message = "Nodes would not find the first one."
  }
  assert {
    condition     = toset(oci_core_instance.node[1].create_vnic_details[0].nsg_ids) == toset(["ocid1.networksecuritygroup.oc1..example", "ocid1.networksecuritygroup.oc1..nodes"])
    error_message = "A node is not in the nodes' group."
  }
  assert {
    condition     = alltrue([for node in range(3) : strcontains(base64decode(yamldecode(output.user_data[node]).write_files[1].content), "JOB_NODE_RANK=${node}\nJOB_RENDEZVOUS=${output.rendezvous}\n")])
    error_message = "A node is told another rank or place."
  }
  assert {
    condition     = output.usd_per_hour == 6
    error_message = "Three nodes cost three times as much."
  }
}

run "rdma_nodes_share_a_cluster" {
  command = plan
  variables {
    nodes              = 2
    shape              = "BM.GPU.H100.8"
    compute_cluster_id = "ocid1.computecluster.oc1..example"
  }
  assert {
    condition     = oci_core_instance.node[0].compute_cluster_id == "ocid1.computecluster.oc1..example" && length(oci_core_instance.node[0].agent_config[0].plugins_config) == 3
    error_message = "Cluster or plugins are missing."
  }
}

run "a_trial_on_a_cpu" {
  command = plan
  variables {
    shape       = "VM.Standard.E5.Flex"
    gpu         = false
    os_image_id = "ocid1.image.oc1..cpu"
  }
  assert {
    condition     = oci_core_instance.node[0].shape_config[0].ocpus == 2 && strcontains(base64decode(yamldecode(output.user_data[0]).write_files[0].content), "GPUS='0'")
    error_message = "A flexible CPU shape needs its size, and no GPU is looked for."
  }
}
