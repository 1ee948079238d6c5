variable "tenancy_ocid" {
  description = "OCID of the tenancy: dynamic group, tags and budget live in its root. Resource Manager fills it in."
  type        = string

  validation {
    condition     = can(regex("^ocid1\\.tenancy\\.", var.tenancy_ocid))
    error_message = "tenancy_ocid begins with ocid1.tenancy.; the console shows it under Tenancy details."
  }
}

variable "compartment_ocid" {
  description = "OCID of the compartment that holds everything. Give the runs one of their own: whoever may launch instances with the run's tag in it has the runs' rights."
  type        = string

  validation {
    condition     = can(regex("^ocid1\\.compartment\\.", var.compartment_ocid))
    error_message = "compartment_ocid begins with ocid1.compartment.; the tenancy's root is no place for runs, since their rights are limited by compartment."
  }
}

variable "region" {
  description = "Region of network, bucket, registry and instances, such as eu-frankfurt-1."
  type        = string

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+-[0-9]+$", var.region))
    error_message = "region is a name such as eu-frankfurt-1, not a key such as FRA: service endpoints are made of it."
  }
}

variable "home_region" {
  description = "The tenancy's home region; null looks it up."
  type        = string
  default     = null

  validation {
    condition     = var.home_region == null ? true : can(regex("^[a-z]+-[a-z]+-[0-9]+$", var.home_region))
    error_message = "home_region is a name such as eu-frankfurt-1, not a key such as FRA: policies and groups are made there."
  }
}

variable "config_file_profile" {
  description = "Profile in ~/.oci/config to sign in with; null takes the provider's own default, and Resource Manager needs none."
  type        = string
  default     = null

  validation {
    condition     = var.config_file_profile == null ? true : can(regex("^[^\\s\\[\\]]+$", var.config_file_profile))
    error_message = "config_file_profile is a profile's name without brackets, as it stands in ~/.oci/config."
  }
}

variable "name" {
  description = "Prefix of every display name and name of the registry's repository; one foundation a name and compartment."
  type        = string
  default     = "gpu-job"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,28}[a-z0-9]$", var.name))
    error_message = "name has 3 to 30 lower-case letters, digits and dashes: the registry allows no capitals, and a budget's name is made of it."
  }
}

variable "bucket_name" {
  description = "Name of the bucket; unique in the tenancy's namespace. null takes the value of name."
  type        = string
  default     = null

  validation {
    condition     = var.bucket_name == null ? true : can(regex("^[a-z0-9][a-z0-9._-]{0,254}$", var.bucket_name))
    error_message = "bucket_name has lower-case letters, digits, dots, dashes and underscores: policies compare names without regard to case, so capitals would let two buckets be taken for one."
  }
}

variable "prefix" {
  description = "Where runs store results in the bucket: store.uri is oci://BUCKET@NAMESPACE/PREFIX. Instances may write here and under launches/ only."
  type        = string
  default     = "runs"

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9._-]*$", var.prefix)) && !contains(["launches", "packages"], var.prefix)
    error_message = "prefix is one path segment without slashes, and neither launches nor packages: those hold what submit and the foundation write."
  }
}

variable "tag_namespace" {
  description = "Name of the defined-tag namespace; unique in the tenancy. Policies and the dynamic group go by its tags."
  type        = string
  default     = "gpu_job"

  validation {
    condition     = can(regex("^[a-z][a-z0-9_]{1,62}$", var.tag_namespace))
    error_message = "tag_namespace has lower-case letters, digits and underscores: it is part of a dotted name in policies."
  }
}

variable "vcn_cidr" {
  description = "Address range of the VCN; the private subnet takes its first quarter."
  type        = string
  default     = "10.77.0.0/20"

  validation {
    condition     = can(cidrhost(var.vcn_cidr, 0)) && try(tonumber(split("/", var.vcn_cidr)[1]) >= 16 && tonumber(split("/", var.vcn_cidr)[1]) <= 26, false)
    error_message = "vcn_cidr is a range between /16 and /26 such as 10.77.0.0/20: OCI takes no larger VCN, and a smaller one has no room for a subnet."
  }
}

variable "nat" {
  description = "Whether instances reach the internet through a NAT gateway. Needed only for data sets or NVIDIA packages that are not in the bucket."
  type        = bool
  default     = false
}

variable "checkpoint_days" {
  description = "Days after which checkpoints in the bucket expire; reports, weights and logs stay."
  type        = number
  default     = 30

  validation {
    condition     = var.checkpoint_days >= 1 && floor(var.checkpoint_days) == var.checkpoint_days
    error_message = "checkpoint_days is a whole number of at least 1: a shorter time would take the checkpoint a run resumes from."
  }
}

variable "version_days" {
  description = "Days for which overwritten and deleted objects can be brought back."
  type        = number
  default     = 7

  validation {
    condition     = var.version_days >= 1 && floor(var.version_days) == var.version_days
    error_message = "version_days is a whole number of at least 1: instances may delete checkpoints, and this is the way back."
  }
}

variable "kms_key_id" {
  description = "OCID of a Vault key that encrypts the bucket; null leaves it to Oracle's keys."
  type        = string
  default     = null

  validation {
    condition     = var.kms_key_id == null ? true : can(regex("^ocid1\\.key\\.", var.kms_key_id))
    error_message = "kms_key_id begins with ocid1.key.; a vault's OCID is not a key's."
  }
}

variable "log_days" {
  description = "Days for which OCI Logging keeps the runs' logs."
  type        = number
  default     = 30

  validation {
    condition     = contains([30, 60, 90, 120, 150, 180], var.log_days)
    error_message = "log_days is 30, 60, 90, 120, 150 or 180: OCI Logging keeps logs for whole months."
  }
}

variable "email" {
  description = "Address that hears of finished, failed and preempted runs and of the budget; it must confirm Oracle's mail once. null subscribes nobody."
  type        = string
  default     = null

  validation {
    condition     = var.email == null ? true : can(regex("^[^@\\s]+@[^@\\s]+\\.[^@\\s]+$", var.email))
    error_message = "email is one address such as team@example.com: a subscription has one endpoint."
  }
}

variable "budget" {
  description = "Monthly budget of the compartment in the tenancy's currency, whole units; null makes none. A budget only warns: what stops a run is max_duration."
  type        = number
  default     = null

  validation {
    condition     = var.budget == null ? true : var.budget >= 1 && floor(var.budget) == var.budget
    error_message = "budget is a whole number of at least 1: OCI takes no fractions."
  }
}

variable "budget_alert_percent" {
  description = "Share of the budget, forecast or spent, at which the alert is sent."
  type        = number
  default     = 80

  validation {
    condition     = var.budget_alert_percent >= 1 && var.budget_alert_percent <= 100
    error_message = "budget_alert_percent lies between 1 and 100: an alert beyond the budget comes too late."
  }
}

variable "toolkit_package" {
  description = "Path of the nvidia-container-toolkit-base RPM on this machine; it is put into the bucket, for instances without a way to NVIDIA's site. null puts none."
  type        = string
  default     = null

  validation {
    condition     = var.toolkit_package == null ? true : endswith(var.toolkit_package, ".rpm") && fileexists(var.toolkit_package)
    error_message = "toolkit_package names an .rpm file on this machine: its checksum is taken here and checked on every instance."
  }
}

variable "rdma_availability_domain" {
  description = "Availability domain of a compute cluster for several bare-metal nodes with RDMA, such as Uocm:EU-FRANKFURT-1-AD-1; null makes none."
  type        = string
  default     = null

  validation {
    condition     = var.rdma_availability_domain == null ? true : can(regex(":.+-AD-[0-9]+$", var.rdma_availability_domain))
    error_message = "rdma_availability_domain is a full name with the tenancy's prefix, such as Uocm:EU-FRANKFURT-1-AD-1."
  }
}

variable "allow_data_science" {
  description = "Whether Data Science job runs of this compartment get the rights of a run: submit --to data-science needs it."
  type        = bool
  default     = false
}

variable "allow_batch" {
  description = "Whether OCI Batch in this compartment gets the rights of a run: submit --to batch needs it."
  type        = bool
  default     = false
}

variable "tags" {
  description = "Freeform tags on everything that takes them."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for key, value in var.tags : length(key) <= 100 && length(value) <= 256 && !strcontains(key, " ")])
    error_message = "tags have keys without blanks of up to 100 characters and values of up to 256: OCI takes no longer ones."
  }
}
