# Rights for Oracle's own schedulers, none unless asked for: submit --to data-science, submit --to batch. They are those
# of an instance less what ends one: read the bucket, write results, write the log, read the repository.
#
# A Data Science job run is a member of a dynamic group. Batch has no such type of resource: Oracle's documentation
# grants to any-user with the principal's type, to which its compartment is added here.

resource "oci_identity_dynamic_group" "data_science" {
  count    = var.allow_data_science ? 1 : 0
  provider = oci.home

  compartment_id = var.tenancy_ocid
  name           = "${var.name}-data-science"
  description    = "Data Science job runs of ${var.name}"
  matching_rule  = "All {resource.type = 'datasciencejobrun', resource.compartment.id = '${var.compartment_ocid}'}"
  freeform_tags  = local.freeform_tags
}

locals {
  job_rights = {
    "read buckets"    = [local.ours]
    "read objects"    = [local.ours]
    "manage objects"  = [local.ours, local.written, local.changes]
    "use log-content" = ["target.loggroup.id = '${oci_logging_log_group.this.id}'"]
  }
  pull_rights = {
    "read repos" = ["target.repo.name = '${oci_artifacts_container_repository.this.display_name}'"]
  }
  principal = {
    for type in ["batchjob", "batchcontextinfrastructure"] :
    type => ["request.principal.type = '${type}'", "request.principal.compartment.id = '${var.compartment_ocid}'"]
  }

  # The job's network is the private subnet, which the service itself attaches its runs to.
  attaching = join(", ", [for permission in [
    "VCN_READ", "SUBNET_READ", "SUBNET_ATTACH", "SUBNET_DETACH",
    "VNIC_READ", "VNIC_CREATE", "VNIC_DELETE", "VNIC_ATTACH", "VNIC_DETACH",
  ] : "request.permission = '${permission}'"])

  data_science_statements = concat([
    for right, conditions in merge(local.job_rights, local.pull_rights) :
    "Allow dynamic-group ${var.name}-data-science to ${right} in ${local.where} where all {${join(", ", conditions)}}"
    ], [
    "Allow service datascience to use virtual-network-family in ${local.where} where any {${local.attaching}}",
  ])

  batch_statements = concat([
    for right, conditions in local.job_rights :
    "Allow any-user to ${right} in ${local.where} where all {${join(", ", concat(local.principal.batchjob, conditions))}}"
    ], [
    for right, conditions in merge(local.pull_rights, { "use log-content" = local.job_rights["use log-content"] }) :
    "Allow any-user to ${right} in ${local.where} where all {${join(", ", concat(local.principal.batchcontextinfrastructure, conditions))}}"
  ])
}

resource "oci_identity_policy" "data_science" {
  count    = var.allow_data_science ? 1 : 0
  provider = oci.home

  compartment_id = var.compartment_ocid
  name           = "${var.name}-data-science"
  description    = "What a Data Science job run of ${var.name} may do"
  statements     = local.data_science_statements
  freeform_tags  = local.freeform_tags

  depends_on = [oci_identity_dynamic_group.data_science]
}

resource "oci_identity_policy" "batch" {
  count    = var.allow_batch ? 1 : 0
  provider = oci.home

  compartment_id = var.compartment_ocid
  name           = "${var.name}-batch"
  description    = "What OCI Batch may do for ${var.name}"
  statements     = local.batch_statements
  freeform_tags  = local.freeform_tags
}
