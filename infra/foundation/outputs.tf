# infra/run takes these under the same names. `terraform output -json` is what submit reads.

output "tenancy_ocid" {
  description = "OCID of the tenancy."
  value       = var.tenancy_ocid
}

output "compartment_ocid" {
  description = "OCID of the compartment runs are launched in."
  value       = var.compartment_ocid
}

output "region" {
  description = "Region of everything here."
  value       = var.region
}

output "namespace" {
  description = "Object Storage namespace; also the first part of an image's path in the registry."
  value       = local.namespace
}

output "bucket" {
  description = "Name of the bucket."
  value       = oci_objectstorage_bucket.this.name
}

output "prefix" {
  description = "Where runs store results in the bucket."
  value       = var.prefix
}

output "store_uri" {
  description = "What a spec says under store.uri."
  value       = "oci://${local.bucket}@${local.namespace}/${var.prefix}"
}

output "repository" {
  description = "Where to push the image, without tag."
  value       = "${local.region_key}.ocir.io/${local.namespace}/${oci_artifacts_container_repository.this.display_name}"
}

output "subnet_id" {
  description = "OCID of the private subnet."
  value       = oci_core_subnet.private.id
}

output "subnet_domain" {
  description = "DNS domain of the subnet; nodes find each other by name in it."
  value       = "runs.gpujob.oraclevcn.com"
}

output "subnet_cidr" {
  description = "Address range of the subnet."
  value       = oci_core_subnet.private.cidr_block
}

output "nsg_id" {
  description = "OCID of the network security group of every run: HTTPS outwards, nothing inwards."
  value       = oci_core_network_security_group.run.id
}

output "nodes_nsg_id" {
  description = "OCID of the group that nodes of a run with several join as well."
  value       = oci_core_network_security_group.nodes.id
}

output "compute_cluster_id" {
  description = "OCID of the compute cluster for RDMA, or null."
  value       = one(oci_core_compute_cluster.rdma[*].id)
}

output "rdma_availability_domain" {
  description = "Availability domain of that cluster, or null: submit tries nodes with RDMA there."
  value       = var.rdma_availability_domain
}

output "managed" {
  description = "Which of Oracle's schedulers have the rights of a run: data-science, batch, both or none."
  value       = compact([var.allow_data_science ? "data-science" : "", var.allow_batch ? "batch" : ""])
}

output "tag_namespace" {
  description = "Name of the defined-tag namespace."
  value       = oci_identity_tag_namespace.this.name

  # An instance with a tag that does not exist yet is refused, and one without it has no rights.
  depends_on = [oci_identity_tag.this, oci_identity_policy.runs]
}

output "log_group_id" {
  description = "OCID of the log group, which Data Science jobs and Batch log into."
  value       = oci_logging_log_group.this.id
}

output "log_id" {
  description = "OCID of the custom log."
  value       = oci_logging_log.runs.id
}

output "topic_id" {
  description = "OCID of the notification topic."
  value       = oci_ons_notification_topic.this.id
}

output "toolkit" {
  description = "NVIDIA container toolkit package in the bucket, or null."
  value       = one(oci_objectstorage_object.toolkit[*].object)
}

output "toolkit_sha256" {
  description = "SHA-256 of that package, or null."
  value       = var.toolkit_package == null ? null : filesha256(var.toolkit_package)
}

output "nat" {
  description = "Whether instances reach the internet."
  value       = var.nat
}
