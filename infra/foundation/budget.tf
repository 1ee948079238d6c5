# Budgets live in the root and only warn.

resource "oci_budget_budget" "this" {
  count    = var.budget == null ? 0 : 1
  provider = oci.home

  compartment_id = var.tenancy_ocid
  display_name   = var.name
  description    = "Compartment of ${var.name}"
  amount         = var.budget
  reset_period   = "MONTHLY"
  target_type    = "COMPARTMENT"
  targets        = [var.compartment_ocid]
  freeform_tags  = local.freeform_tags
}

resource "oci_budget_alert_rule" "this" {
  for_each = var.budget == null ? toset([]) : toset(["ACTUAL", "FORECAST"])
  provider = oci.home

  budget_id      = oci_budget_budget.this[0].id
  display_name   = "${var.name}-${lower(each.key)}"
  type           = each.key
  threshold      = var.budget_alert_percent
  threshold_type = "PERCENTAGE"
  recipients     = var.email
  message        = "${var.name}: ${var.budget_alert_percent} % of the month's budget (${lower(each.key)}). List what runs with: python -m job list"
  freeform_tags  = local.freeform_tags
}
