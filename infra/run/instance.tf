# The instances of one run. Applied once: an instance that ended itself would be made anew by the next plan.

resource "oci_core_instance" "node" {
  # checkov:skip=CKV_OCI_4: set at the top level below; the field in launch_options, which it looks at, is deprecated
  count = var.nodes

  availability_domain = local.choice.availability_domain
  fault_domain        = var.fault_domain
  compartment_id      = var.compartment_ocid
  compute_cluster_id  = var.compute_cluster_id
  display_name        = var.nodes == 1 ? var.run_id : "${var.run_id}-${count.index}"
  shape               = local.choice.shape
  freeform_tags       = { project = "gpu-job" }

  defined_tags = {
    "${var.tag_namespace}.role"    = "run"
    "${var.tag_namespace}.run_id"  = var.run_id
    "${var.tag_namespace}.owner"   = var.owner
    "${var.tag_namespace}.expires" = local.expires
  }

  # Nothing in metadata is secret; OCI allows 32,000 bytes of it.
  metadata = {
    user_data = base64encode(local.user_data[count.index])
  }

  source_details {
    source_type             = "image"
    source_id               = local.os_image_id
    boot_volume_size_in_gbs = tostring(var.boot_volume_gb)
    boot_volume_vpus_per_gb = tostring(var.boot_volume_vpus)
  }

  create_vnic_details {
    subnet_id        = var.subnet_id
    assign_public_ip = "false"
    nsg_ids          = compact([var.nsg_id, var.nodes > 1 ? var.nodes_nsg_id : null])
    hostname_label   = "${local.label}-${count.index}"
  }

  instance_options {
    are_legacy_imds_endpoints_disabled = true
  }

  # Bare metal has no paravirtualized disk to encrypt the way to.
  is_pv_encryption_in_transit_enabled = startswith(local.choice.shape, "VM.")

  # After a host failure the machine comes back and the job resumes; a stopped GPU machine would cost the same.
  dynamic "availability_config" {
    for_each = var.preemptible || startswith(local.choice.shape, "BM.") ? [] : [1]

    content {
      recovery_action = "RESTORE_INSTANCE"
    }
  }

  agent_config {
    is_management_disabled = true
    is_monitoring_disabled = false

    dynamic "plugins_config" {
      for_each = var.compute_cluster_id == null ? [] : [
        "Compute RDMA GPU Monitoring", "Compute HPC RDMA Authentication", "Compute HPC RDMA Auto-Configuration",
      ]

      content {
        name          = plugins_config.value
        desired_state = "ENABLED"
      }
    }
  }

  dynamic "shape_config" {
    for_each = endswith(local.choice.shape, ".Flex") ? [1] : []

    content {
      ocpus         = var.ocpus
      memory_in_gbs = var.memory_gb
    }
  }

  dynamic "preemptible_instance_config" {
    for_each = var.preemptible ? [1] : []

    content {
      preemption_action {
        type                 = "TERMINATE"
        preserve_boot_volume = false
      }
    }
  }

  preserve_boot_volume = false

  timeouts {
    create = "30m" # bare metal takes its time
  }

  lifecycle {
    precondition {
      condition     = !var.gpu || length(local.cpu_shapes) == 0
      error_message = "The job needs a GPU, and ${join(", ", local.cpu_shapes)} has none. Take a GPU shape, or gpu = false for a trial on a CPU."
    }
    precondition {
      condition     = var.gpu || length(local.gpu_shapes) == 0
      error_message = "gpu = false, and ${join(", ", local.gpu_shapes)} is paid for its GPU. Take a CPU shape such as VM.Standard.E5.Flex."
    }
    precondition {
      condition     = !var.gpu || var.image_cuda != null
      error_message = "The image has no CUDA (image_cuda is null), so a GPU would idle. Take the GPU image."
    }
    precondition {
      condition     = !var.preemptible || length(local.not_by_offer) == 0 || var.force
      error_message = "Not offered as preemptible: ${join(", ", local.not_by_offer)}. Oracle names VM.GPU2 and VM.GPU3 only (page of 2025-02-11); force = true tries all the same."
    }
    precondition {
      condition     = length(local.amd_shapes) == 0
      error_message = "${join(", ", local.amd_shapes)} has AMD GPUs and needs a ROCm image, which this project does not build."
    }
    precondition {
      condition     = length(local.arm_shapes) == 0 || var.force
      error_message = "${join(", ", local.arm_shapes)} has Arm processors, and the image is x86-64. With an Arm image of your own, force = true."
    }
    precondition {
      condition     = !var.gpu || length(local.cannot_run) == 0
      error_message = "The image's torch has code for ${join(", ", var.image_arches)} only and cannot run ${join(", ", local.cannot_run)}. Take another shape, or an image built for CUDA 12 where the GPU is older than Turing."
    }
    precondition {
      condition     = var.boot_volume_gb >= 50 + 2 * var.image_gb
      error_message = "boot_volume_gb = ${var.boot_volume_gb} is too small: 50 GB of system and an image of ${var.image_gb} GB, packed and unpacked, need ${50 + 2 * var.image_gb}."
    }
    precondition {
      condition     = length(local.small_memory) == 0
      error_message = "shm_gb = ${var.shm_gb} is more than half the memory of ${join(", ", local.small_memory)}."
    }
    precondition {
      condition     = (var.toolkit == null) == (var.toolkit_sha256 == null)
      error_message = "toolkit and toolkit_sha256 go together: a package is installed only if it is the one that was pinned."
    }
    precondition {
      condition     = var.nodes == 1 || var.nodes_nsg_id != null
      error_message = "nodes = ${var.nodes} needs nodes_nsg_id: without it the nodes cannot reach each other."
    }
    precondition {
      condition     = var.nodes == 1 || !var.preemptible
      error_message = "nodes = ${var.nodes} with preemptible: one node taken away ends them all, while the others are still paid for."
    }
    precondition {
      condition     = var.compute_cluster_id == null || (length(local.no_rdma) == 0 && var.nodes > 1)
      error_message = "compute_cluster_id is for several nodes with RDMA; nodes = ${var.nodes}, without RDMA: ${join(", ", local.no_rdma)}."
    }
    precondition {
      condition     = var.compute_cluster_id == null || var.availability_domain != null
      error_message = "compute_cluster_id needs availability_domain: the cluster is in one."
    }
    precondition {
      condition     = var.availability_domain == null ? true : contains(local.domains, var.availability_domain)
      error_message = "There is no availability domain ${coalesce(var.availability_domain, "-")}; the tenancy has ${join(", ", local.domains)}."
    }
    precondition {
      condition     = local.os_image_id != null
      error_message = "No Oracle Linux ${var.gpu ? "Gen2-GPU " : ""}image is offered for ${var.shape} in ${var.region}. Give os_image_id."
    }
    precondition {
      condition     = var.max_duration > var.first_step_timeout
      error_message = "max_duration = ${var.max_duration} s ends before first_step_timeout = ${var.first_step_timeout} s could."
    }
    precondition {
      condition     = alltrue([for each in local.user_data : length(each) <= 16384])
      error_message = "cloud-init renders to more than 16 KB; shorten command or environment."
    }
  }
}
