# What the instance is told. Values are words and numbers without quotes, by the rules in variables.tf.

locals {
  launched = coalesce(var.launched, plantimestamp())
  expires  = timeadd(local.launched, "${var.max_duration}s")

  label      = "g${substr(sha256(var.run_id), 0, 12)}"
  rendezvous = "${local.label}-0.${var.subnet_domain}:${var.rendezvous_port}"
  command    = coalescelist(coalesce(var.command, []), ["run", "/spec.yaml", "--run-id", var.run_id])

  instance_env = [for node in range(var.nodes) : {
    RUN_ID             = var.run_id
    NAMESPACE          = var.namespace
    BUCKET             = var.bucket
    IMAGE              = var.image
    GPUS               = try(local.table[local.choice.shape].gpus, var.gpu ? 1 : 0)
    MIN_DRIVER         = local.min_driver
    TOOLKIT            = var.toolkit
    TOOLKIT_SHA256     = var.toolkit_sha256
    LOG_ID             = var.log_id
    TOPIC_ID           = var.topic_id
    STORE_URI          = var.store_uri
    SHAPE              = local.choice.shape
    USD_PER_HOUR       = local.usd_per_hour
    NODES              = var.nodes
    NODE_RANK          = node
    RDMA               = var.compute_cluster_id == null ? 0 : 1
    SUBNET_CIDR        = var.subnet_cidr
    SHM_GB             = var.shm_gb
    MAX_DURATION       = var.max_duration
    LAUNCHED           = local.launched
    EXPIRES            = local.expires
    BOOT_TIMEOUT       = var.boot_timeout
    FIRST_STEP_TIMEOUT = var.first_step_timeout
    STOP_GRACE         = var.stop_grace
    MAX_RESTARTS       = var.max_restarts
  }]

  container_env = [for node in range(var.nodes) : merge(var.environment, {
    JOB_RUN_ID       = var.run_id
    JOB_SHAPE        = local.choice.shape
    JOB_IMAGE_DIGEST = split("@", var.image)[1]
    JOB_CACHE_DIR    = "/work/cache"
    }, var.nodes == 1 ? {} : {
    JOB_NODES      = var.nodes
    JOB_NODE_RANK  = node
    JOB_RENDEZVOUS = local.rendezvous
  })]

  # First boot: bootcmd arms an early watchdog before the network is up; write_files lays files down; runcmd arms the
  # real watchdog (absolute, so that a reboot does not set it back) and starts gpu-job-boot. Later boots: systemd alone
  # starts gpu-job-deadline.timer, gpu-job-beat.timer and gpu-job-boot.service; cloud-init writes nothing again.
  # No secret is in there: every process on the instance can read it. OCI takes 16 KB: comments stay here.
  user_data = [for node in range(var.nodes) : templatefile("${path.module}/cloud-init.yaml.tftpl", {
    max_duration = var.max_duration
    stop_grace   = var.stop_grace
    env          = base64encode(join("", [for name, value in local.instance_env[node] : "${name}='${value == null ? "" : value}'\n"]))
    job_env      = base64encode(join("", [for name, value in local.container_env[node] : "${name}=${value}\n"]))
    command      = base64encode("${join("\n", local.command)}\n")
    script       = base64gzip(replace(file("${path.module}/boot/gpu-job.sh"), "/\n[ \t]*#[^\n]*/", ""))
    oci          = base64gzip(file("${path.module}/boot/oci.py"))
  })]
}
