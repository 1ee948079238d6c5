output "instance_ids" {
  description = "OCIDs of the instances, first node first."
  value       = oci_core_instance.node[*].id
}

output "shape" {
  description = "Shape that was launched."
  value       = local.choice.shape
}

output "availability_domain" {
  description = "Availability domain it was launched in."
  value       = local.choice.availability_domain
}

output "expires" {
  description = "When the instances are gone at the latest (RFC 3339)."
  value       = local.expires
}

output "usd_per_hour" {
  description = "Estimated list price of all nodes an hour, or null for a shape that is not in the table."
  value       = local.usd_per_hour
}

output "offers" {
  description = "What the capacity report said, in order of preference; empty where the domain was given."
  value       = local.offers
}

output "os_image_id" {
  description = "OCID of the instance's image."
  value       = local.os_image_id
}

output "rendezvous" {
  description = "Where nodes meet, or null for one node."
  value       = var.nodes > 1 ? local.rendezvous : null
}

output "user_data" {
  description = "cloud-init as each node gets it; not secret."
  value       = local.user_data
}
