# Who hears of runs: the instances publish their end, Events publishes what the guest cannot know.

resource "oci_ons_notification_topic" "this" {
  compartment_id = var.compartment_ocid
  name           = var.name
  description    = "Finished, failed and preempted runs"
  freeform_tags  = local.freeform_tags
}

resource "oci_ons_subscription" "email" {
  count = var.email == null ? 0 : 1

  compartment_id = var.compartment_ocid
  topic_id       = oci_ons_notification_topic.this.id
  protocol       = "EMAIL"
  endpoint       = var.email
  freeform_tags  = local.freeform_tags
}

# Oracle tells of a preemption two minutes ahead through Events only; nothing reaches the guest before its shutdown.
resource "oci_events_rule" "preemption" {
  compartment_id = var.compartment_ocid
  display_name   = "${var.name}-preemption"
  is_enabled     = true
  freeform_tags  = local.freeform_tags

  condition_details {
    event_types = ["com.oraclecloud.computeapi.instancepreemptionaction"]
  }

  actions {
    action {
      action_type = "ONS"
      is_enabled  = true
      topic_id    = oci_ons_notification_topic.this.id
    }
  }
}
