# What the table of shapes says of each candidate. The table is the job's own; a Resource Manager zip has it beside this
# file (make stacks), a checkout has it in job/cloud.

locals {
  shapes_file = fileexists("${path.module}/shapes.yaml") ? "${path.module}/shapes.yaml" : "${path.module}/../../job/cloud/shapes.yaml"
  table       = yamldecode(file(local.shapes_file))["shapes"]

  candidates = distinct(concat([var.shape], var.shape_fallbacks))
  known      = { for name in local.candidates : name => local.table[name] if contains(keys(local.table), name) }

  cpu_shapes   = [for name in local.candidates : name if !strcontains(name, ".GPU")]
  gpu_shapes   = [for name in local.candidates : name if strcontains(name, ".GPU")]
  amd_shapes   = [for name, shape in local.known : name if !startswith(shape.arch, "sm_")]
  arm_shapes   = [for name, shape in local.known : name if try(shape.cpu, "x86") == "arm"]
  not_by_offer = [for name in local.candidates : name if !try(local.table[name].preemptible, false)]
  small_memory = [for name, shape in local.known : "${name} (${shape.ram_gb} GB)" if var.shm_gb > shape.ram_gb / 2]
  no_rdma      = [for name in local.candidates : name if try(local.table[name].rdma_gbps, 0) == 0]

  usd_per_hour = try(local.table[local.choice.shape].usd_per_hour * var.nodes * (var.preemptible ? 0.5 : 1), null)

  # Code for sm_86 runs on every sm_8x from 86 up, so 89 runs it and 90 does not.
  levels       = { for name, shape in local.known : name => tonumber(trimprefix(shape.arch, "sm_")) if startswith(shape.arch, "sm_") }
  image_levels = [for arch in var.image_arches : try(tonumber(trimprefix(arch, "sm_")), 0)]
  cannot_run = [
    for name, level in local.levels : "${name} (${local.known[name].gpu}, ${local.known[name].arch})"
    if !anytrue([for code in local.image_levels : floor(code / 10) == floor(level / 10) && code <= level])
  ]

  # NVIDIA's minor version compatibility: CUDA 13 needs branch 580, CUDA 12 needs 525.
  min_driver = var.image_cuda == null ? 0 : { "12" = 525, "13" = 580 }[split(".", var.image_cuda)[0]]
}
