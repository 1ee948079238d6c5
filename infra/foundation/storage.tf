# The bucket: runs/ is written by jobs, launches/ by submit and the instances, packages/ by this module, data/ by you.

resource "oci_objectstorage_bucket" "this" {
  compartment_id        = var.compartment_ocid
  namespace             = local.namespace
  name                  = local.bucket
  access_type           = "NoPublicAccess"
  versioning            = "Enabled"
  object_events_enabled = true
  kms_key_id            = var.kms_key_id
  freeform_tags         = local.freeform_tags
}

resource "oci_objectstorage_object_lifecycle_policy" "this" {
  namespace = local.namespace
  bucket    = oci_objectstorage_bucket.this.name

  rules {
    name        = "stale-uploads"
    action      = "ABORT"
    target      = "multipart-uploads"
    time_amount = "3"
    time_unit   = "DAYS"
    is_enabled  = true
  }

  rules {
    name        = "old-checkpoints"
    action      = "DELETE"
    target      = "objects"
    time_amount = tostring(var.checkpoint_days)
    time_unit   = "DAYS"
    is_enabled  = true

    object_name_filter {
      inclusion_patterns = ["${var.prefix}/*/checkpoints/*"]
    }
  }

  rules {
    name        = "old-versions"
    action      = "DELETE"
    target      = "previous-object-versions"
    time_amount = tostring(var.version_days)
    time_unit   = "DAYS"
    is_enabled  = true
  }

  # The service refuses rules that it has no right to carry out.
  depends_on = [oci_identity_policy.lifecycle]
}

resource "oci_objectstorage_object" "toolkit" {
  count = var.toolkit_package == null ? 0 : 1

  namespace = local.namespace
  bucket    = oci_objectstorage_bucket.this.name
  object    = "packages/${basename(var.toolkit_package)}"
  source    = var.toolkit_package
}
