# A private subnet that reaches Oracle's services and, only if asked, the internet. Nothing reaches it.

data "oci_core_services" "all" {
  filter {
    name   = "name"
    values = ["All .* Services In Oracle Services Network"]
    regex  = true
  }
}

locals {
  services = data.oci_core_services.all.services[0]
}

resource "oci_core_vcn" "this" {
  compartment_id = var.compartment_ocid
  cidr_blocks    = [var.vcn_cidr]
  display_name   = var.name
  dns_label      = "gpujob"
  freeform_tags  = local.freeform_tags
}

# OCI makes this list with ssh open to the world; here it has no rule at all. Rules are the groups' below.
resource "oci_core_default_security_list" "empty" {
  manage_default_resource_id = oci_core_vcn.this.default_security_list_id
  display_name               = "${var.name}-empty"
  freeform_tags              = local.freeform_tags
}

resource "oci_core_service_gateway" "this" {
  compartment_id = var.compartment_ocid
  vcn_id         = oci_core_vcn.this.id
  display_name   = var.name
  freeform_tags  = local.freeform_tags

  services {
    service_id = local.services.id
  }
}

resource "oci_core_nat_gateway" "this" {
  count = var.nat ? 1 : 0

  compartment_id = var.compartment_ocid
  vcn_id         = oci_core_vcn.this.id
  display_name   = var.name
  freeform_tags  = local.freeform_tags
}

resource "oci_core_route_table" "private" {
  compartment_id = var.compartment_ocid
  vcn_id         = oci_core_vcn.this.id
  display_name   = "${var.name}-private"
  freeform_tags  = local.freeform_tags

  route_rules {
    description       = "Object Storage, registry, Logging, IAM, Oracle's yum"
    destination       = local.services.cidr_block
    destination_type  = "SERVICE_CIDR_BLOCK"
    network_entity_id = oci_core_service_gateway.this.id
  }

  dynamic "route_rules" {
    for_each = oci_core_nat_gateway.this[*].id

    content {
      description       = "The internet, outwards"
      destination       = "0.0.0.0/0"
      destination_type  = "CIDR_BLOCK"
      network_entity_id = route_rules.value
    }
  }
}

resource "oci_core_subnet" "private" {
  compartment_id             = var.compartment_ocid
  vcn_id                     = oci_core_vcn.this.id
  cidr_block                 = cidrsubnet(var.vcn_cidr, 2, 0)
  display_name               = "${var.name}-private"
  dns_label                  = "runs"
  prohibit_public_ip_on_vnic = true
  route_table_id             = oci_core_route_table.private.id
  security_list_ids          = [oci_core_default_security_list.empty.id]
  freeform_tags              = local.freeform_tags
}

resource "oci_core_network_security_group" "run" {
  compartment_id = var.compartment_ocid
  vcn_id         = oci_core_vcn.this.id
  display_name   = "${var.name}-run"
  freeform_tags  = local.freeform_tags
}

resource "oci_core_network_security_group_security_rule" "services" {
  network_security_group_id = oci_core_network_security_group.run.id
  description               = "HTTPS to Oracle's services"
  direction                 = "EGRESS"
  protocol                  = "6"
  destination               = local.services.cidr_block
  destination_type          = "SERVICE_CIDR_BLOCK"

  tcp_options {
    destination_port_range {
      min = 443
      max = 443
    }
  }
}

resource "oci_core_network_security_group_security_rule" "internet" {
  count = var.nat ? 1 : 0

  network_security_group_id = oci_core_network_security_group.run.id
  description               = "HTTPS to the internet through the NAT gateway"
  direction                 = "EGRESS"
  protocol                  = "6"
  destination               = "0.0.0.0/0"
  destination_type          = "CIDR_BLOCK"

  tcp_options {
    destination_port_range {
      min = 443
      max = 443
    }
  }
}

# Nodes of a run join this group as well. Rendezvous has a fixed port, NCCL and gloo pick theirs from Linux's ephemeral
# range (32768 to 60999), so the rules are TCP from 29400 to 60999 among members, who are nodes of runs and nothing else.
# Both directions are named, so nothing has to be tracked.
resource "oci_core_network_security_group" "nodes" {
  compartment_id = var.compartment_ocid
  vcn_id         = oci_core_vcn.this.id
  display_name   = "${var.name}-nodes"
  freeform_tags  = local.freeform_tags
}

resource "oci_core_network_security_group_security_rule" "between_nodes" {
  for_each = toset(["INGRESS", "EGRESS"])

  network_security_group_id = oci_core_network_security_group.nodes.id
  description               = "Nodes of a run among themselves"
  direction                 = each.key
  protocol                  = "6"
  stateless                 = true
  source                    = each.key == "INGRESS" ? oci_core_network_security_group.nodes.id : null
  source_type               = each.key == "INGRESS" ? "NETWORK_SECURITY_GROUP" : null
  destination               = each.key == "EGRESS" ? oci_core_network_security_group.nodes.id : null
  destination_type          = each.key == "EGRESS" ? "NETWORK_SECURITY_GROUP" : null

  tcp_options {
    destination_port_range {
      min = 29400
      max = 60999
    }
  }
}

# RDMA between bare-metal nodes needs them in one compute cluster, which is of one availability domain and costs nothing.
resource "oci_core_compute_cluster" "rdma" {
  count = var.rdma_availability_domain == null ? 0 : 1

  availability_domain = var.rdma_availability_domain
  compartment_id      = var.compartment_ocid
  display_name        = "${var.name}-rdma"
  freeform_tags       = local.freeform_tags
}
