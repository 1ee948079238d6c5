resource "oci_logging_log_group" "this" {
  compartment_id = var.compartment_ocid
  display_name   = var.name
  description    = "Logs of ${var.name} runs"
  freeform_tags  = local.freeform_tags
}

resource "oci_logging_log" "runs" {
  display_name       = "runs"
  log_group_id       = oci_logging_log_group.this.id
  log_type           = "CUSTOM"
  is_enabled         = true
  retention_duration = var.log_days
  freeform_tags      = local.freeform_tags
}
