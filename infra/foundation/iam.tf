# What a run's instance may do, and no more. Every statement has a condition; tests/infra parses them.
#
# OCI's policy language cannot tie TerminateInstance to the caller's own instance: target.instance.id is documented for
# the instance agent's commands only. So an instance may end any instance that carries the run's tag in this
# compartment, and nothing else; whoever minds gives each team a compartment. Likewise no condition can compare an
# object's name with the caller's run, so a run may write over another run's results; versions keep those.

resource "oci_identity_dynamic_group" "runs" {
  provider = oci.home

  compartment_id = var.tenancy_ocid
  name           = "${var.name}-runs"
  description    = "Instances of ${var.name} runs"
  matching_rule  = "All {instance.compartment.id = '${var.compartment_ocid}', tag.${var.tag_namespace}.role.value = 'run'}"
  freeform_tags  = local.freeform_tags

  depends_on = [oci_identity_tag.this]
}

locals {
  who   = "dynamic-group ${oci_identity_dynamic_group.runs.name}"
  where = "compartment id ${var.compartment_ocid}"
  ours  = "target.bucket.name = '${local.bucket}'"
  # Object names as patterns: what jobs write, and what instances tell of themselves.
  written = "any {target.object.name = '${var.prefix}/*', target.object.name = 'launches/*'}"
  changes = "any {request.permission = 'OBJECT_CREATE', request.permission = 'OBJECT_OVERWRITE', request.permission = 'OBJECT_DELETE'}"

  run_statements = [
    "Allow ${local.who} to read buckets in ${local.where} where ${local.ours}",
    "Allow ${local.who} to read objects in ${local.where} where ${local.ours}",
    "Allow ${local.who} to manage objects in ${local.where} where all {${local.ours}, ${local.written}, ${local.changes}}",
    "Allow ${local.who} to read repos in ${local.where} where target.repo.name = '${oci_artifacts_container_repository.this.display_name}'",
    "Allow ${local.who} to use log-content in ${local.where} where target.loggroup.id = '${oci_logging_log_group.this.id}'",
    "Allow ${local.who} to use ons-topics in ${local.where} where request.operation = 'PublishMessage'",
    "Allow ${local.who} to manage instances in ${local.where} where all {request.operation = 'TerminateInstance', target.resource.tag.${var.tag_namespace}.role = 'run'}",
    "Allow ${local.who} to manage volume-attachments in ${local.where} where request.operation = 'TerminateInstance'",
    "Allow ${local.who} to use volumes in ${local.where} where request.operation = 'TerminateInstance'",
    "Allow ${local.who} to use vnics in ${local.where} where request.operation = 'TerminateInstance'",
    "Allow ${local.who} to use subnets in ${local.where} where request.operation = 'TerminateInstance'",
    "Allow ${local.who} to use network-security-groups in ${local.where} where request.operation = 'TerminateInstance'",
  ]
}

resource "oci_identity_policy" "runs" {
  provider = oci.home

  compartment_id = var.compartment_ocid
  name           = "${var.name}-runs"
  description    = "What an instance of a ${var.name} run may do"
  statements     = local.run_statements
  freeform_tags  = local.freeform_tags
}

# Object Storage itself carries out the lifecycle rules and needs the right to.
resource "oci_identity_policy" "lifecycle" {
  provider = oci.home

  compartment_id = var.compartment_ocid
  name           = "${var.name}-lifecycle"
  description    = "Lifecycle rules of the bucket ${local.bucket}"
  statements = [
    "Allow service objectstorage-${var.region} to manage object-family in ${local.where} where ${local.ours}",
  ]
  freeform_tags = local.freeform_tags
}
