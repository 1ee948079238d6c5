# What the foundation makes, and what it never does.

variables {
  tenancy_ocid     = "ocid1.tenancy.oc1..example"
  compartment_ocid = "ocid1.compartment.oc1..example"
  region           = "eu-frankfurt-1"
}

run "an_ordinary_foundation" {
  command = apply
  assert {
    condition     = oci_objectstorage_bucket.this.access_type == "NoPublicAccess" && oci_objectstorage_bucket.this.versioning == "Enabled"
    error_message = "The bucket is open to the public or keeps no versions."
  }
  assert {
    condition     = anytrue([for rule in oci_objectstorage_object_lifecycle_policy.this.rules : rule.action == "ABORT" && rule.target == "multipart-uploads"])
    error_message = "Uploads that were never finished would cost storage for ever."
  }
  assert {
    condition = [
      for rule in oci_objectstorage_object_lifecycle_policy.this.rules : rule.object_name_filter[0].inclusion_patterns
      if rule.action == "DELETE" && rule.target == "objects"
    ] == [toset(["runs/*/checkpoints/*"])]
    error_message = "A rule deletes something else than checkpoints."
  }
  assert {
    condition     = oci_core_network_security_group_security_rule.services.direction == "EGRESS" && length(oci_core_network_security_group_security_rule.internet) == 0
    error_message = "The runs' group lets something in or out to the internet."
  }
  assert {
    condition     = length(oci_core_default_security_list.empty.ingress_security_rules) == 0 && length(oci_core_default_security_list.empty.egress_security_rules) == 0
    error_message = "The default security list has rules."
  }
  assert {
    condition     = oci_core_subnet.private.prohibit_public_ip_on_vnic
    error_message = "The subnet allows public addresses."
  }
  assert {
    condition     = oci_core_network_security_group_security_rule.between_nodes["INGRESS"].source == oci_core_network_security_group.nodes.id
    error_message = "Somebody else than nodes may come in."
  }
  assert {
    condition     = [for rule in oci_core_route_table.private.route_rules : rule.destination_type] == ["SERVICE_CIDR_BLOCK"]
    error_message = "There is a route to elsewhere than Oracle's services."
  }
  assert {
    condition     = !oci_artifacts_container_repository.this.is_public && oci_artifacts_container_repository.this.is_immutable
    error_message = "Anybody could pull, or a tag could change its content."
  }
  assert {
    condition     = output.repository == "fra.ocir.io/standin/gpu-job"
    error_message = "The repository's address is not KEY.ocir.io/NAMESPACE/NAME."
  }
  assert {
    condition     = oci_identity_dynamic_group.runs.matching_rule == "All {instance.compartment.id = 'ocid1.compartment.oc1..example', tag.gpu_job.role.value = 'run'}"
    error_message = "The dynamic group takes in more than the runs."
  }
  assert {
    condition     = oci_identity_tag.this["role"].validator[0].values == tolist(["run"])
    error_message = "The role tag may be anything."
  }
  assert {
    condition     = oci_identity_tag.this["run_id"].is_cost_tracking && !oci_identity_tag.this["owner"].is_cost_tracking
    error_message = "Costs are not tracked by run."
  }
  assert {
    condition     = length(oci_budget_budget.this) == 0 && length(oci_budget_alert_rule.this) == 0 && length(oci_ons_subscription.email) == 0
    error_message = "Something was made that nobody asked for."
  }
  assert {
    condition     = oci_events_rule.preemption.condition_details[0].event_types == tolist(["com.oraclecloud.computeapi.instancepreemptionaction"])
    error_message = "Nobody hears of a preemption."
  }
  assert {
    condition     = length(oci_identity_policy.data_science) == 0 && length(oci_identity_policy.batch) == 0 && length(oci_identity_dynamic_group.data_science) == 0 && length(output.managed) == 0
    error_message = "Rights are wider than anybody asked for."
  }
  assert {
    condition = alltrue([for direction, rule in oci_core_network_security_group_security_rule.between_nodes : (
      coalesce(rule.source, rule.destination) == oci_core_network_security_group.nodes.id && rule.protocol == "6" &&
      rule.tcp_options[0].destination_port_range[0].min == 29400 && rule.tcp_options[0].destination_port_range[0].max == 60999
    )])
    error_message = "Something else than a node reaches nodes, or nodes do not reach each other."
  }
}

run "what_is_asked_for" {
  command = apply
  variables {
    nat                      = true
    budget                   = 200
    email                    = "team@example.com"
    rdma_availability_domain = "Uocm:EU-FRANKFURT-1-AD-1"
    allow_batch              = true
    toolkit_package          = "tests/toolkit.rpm"
  }
  assert {
    condition     = length(oci_core_nat_gateway.this) == 1 && length(oci_core_route_table.private.route_rules) == 2 && length(oci_core_network_security_group_security_rule.internet) == 1
    error_message = "nat = true needs gateway, route and rule."
  }
  assert {
    condition     = toset(keys(oci_budget_alert_rule.this)) == toset(["ACTUAL", "FORECAST"]) && oci_budget_alert_rule.this["ACTUAL"].recipients == "team@example.com"
    error_message = "An alert is missing or goes to nobody."
  }
  assert {
    condition     = output.compute_cluster_id == oci_core_compute_cluster.rdma[0].id
    error_message = "The cluster's OCID is not put out."
  }
  assert {
    condition     = length(oci_identity_policy.batch) == 1 && length(oci_identity_policy.data_science) == 0 && output.managed == tolist(["batch"])
    error_message = "Batch brings rights for Data Science, or none of its own."
  }
  assert {
    condition     = output.toolkit == "packages/toolkit.rpm" && output.toolkit_sha256 == filesha256("tests/toolkit.rpm")
    error_message = "The package's name or checksum is not put out."
  }
}
