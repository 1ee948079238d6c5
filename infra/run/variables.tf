# First what infra/foundation puts out, under the same names; then the run.

variable "tenancy_ocid" {
  description = "OCID of the tenancy; the capacity report is asked for in its root. Resource Manager fills it in."
  type        = string

  validation {
    condition     = can(regex("^ocid1\\.tenancy\\.", var.tenancy_ocid))
    error_message = "tenancy_ocid begins with ocid1.tenancy.; take the foundation's output."
  }
}

variable "compartment_ocid" {
  description = "OCID of the compartment to launch in: the foundation's, since rights end at its border."
  type        = string

  validation {
    condition     = can(regex("^ocid1\\.compartment\\.", var.compartment_ocid))
    error_message = "compartment_ocid begins with ocid1.compartment.; take the foundation's output."
  }
}

variable "region" {
  description = "Region of the foundation, such as eu-frankfurt-1."
  type        = string

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+-[0-9]+$", var.region))
    error_message = "region is a name such as eu-frankfurt-1, not a key such as FRA."
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

variable "namespace" {
  description = "Object Storage namespace."
  type        = string

  validation {
    condition     = can(regex("^[a-zA-Z0-9_-]+$", var.namespace))
    error_message = "namespace is one word, as the foundation puts it out: it is part of each object's address."
  }
}

variable "bucket" {
  description = "Bucket of the foundation."
  type        = string

  validation {
    condition     = can(regex("^[a-zA-Z0-9._-]+$", var.bucket))
    error_message = "bucket has letters, digits, dots, dashes and underscores, as Object Storage takes them."
  }
}

variable "subnet_id" {
  description = "OCID of the private subnet."
  type        = string

  validation {
    condition     = can(regex("^ocid1\\.subnet\\.", var.subnet_id))
    error_message = "subnet_id begins with ocid1.subnet.; take the foundation's output."
  }
}

variable "subnet_domain" {
  description = "DNS domain of the subnet, in which nodes find the first one."
  type        = string
  default     = "runs.gpujob.oraclevcn.com"

  validation {
    condition     = can(regex("^[a-z0-9-]+([.][a-z0-9-]+)+$", var.subnet_domain))
    error_message = "subnet_domain is a DNS domain such as runs.gpujob.oraclevcn.com: nodes look the first one up in it."
  }
}

variable "subnet_cidr" {
  description = "Address range of the subnet, from which nodes let each other in."
  type        = string
  default     = "10.77.0.0/22"

  validation {
    condition     = can(cidrhost(var.subnet_cidr, 0))
    error_message = "subnet_cidr is a range such as 10.77.0.0/22: the machine's own firewall is opened for it."
  }
}

variable "nsg_id" {
  description = "OCID of the network security group of every run."
  type        = string

  validation {
    condition     = can(regex("^ocid1\\.networksecuritygroup\\.", var.nsg_id))
    error_message = "nsg_id begins with ocid1.networksecuritygroup.; without the group the instance reaches nothing."
  }
}

variable "nodes_nsg_id" {
  description = "OCID of the group that nodes of a run with several join as well."
  type        = string
  default     = null

  validation {
    condition     = var.nodes_nsg_id == null ? true : can(regex("^ocid1\\.networksecuritygroup\\.[a-zA-Z0-9._-]+$", var.nodes_nsg_id))
    error_message = "nodes_nsg_id begins with ocid1.networksecuritygroup.; the foundation puts it out as nodes_nsg_id."
  }
}

variable "compute_cluster_id" {
  description = "OCID of a compute cluster: nodes talk by RDMA. null is plain TCP."
  type        = string
  default     = null

  validation {
    condition     = var.compute_cluster_id == null ? true : can(regex("^ocid1\\.computecluster\\.", var.compute_cluster_id))
    error_message = "compute_cluster_id begins with ocid1.computecluster.; a cluster network is another thing."
  }
}

variable "tag_namespace" {
  description = "Defined-tag namespace of the foundation; the instance's rights hang on its role tag."
  type        = string
  default     = "gpu_job"

  validation {
    condition     = can(regex("^[a-z][a-z0-9_]{1,62}$", var.tag_namespace))
    error_message = "tag_namespace has lower-case letters, digits and underscores, as in the foundation: the instance's rights go by it."
  }
}

variable "log_id" {
  description = "OCID of the custom log; null leaves OCI Logging out."
  type        = string
  default     = null

  validation {
    condition     = var.log_id == null ? true : can(regex("^ocid1\\.log\\.[a-zA-Z0-9._-]+$", var.log_id))
    error_message = "log_id begins with ocid1.log.; a log group's OCID is not a log's."
  }
}

variable "topic_id" {
  description = "OCID of the notification topic; null tells nobody."
  type        = string
  default     = null

  validation {
    condition     = var.topic_id == null ? true : can(regex("^ocid1\\.[a-z]+\\.[a-zA-Z0-9._-]+$", var.topic_id))
    error_message = "topic_id is an OCID, as the foundation puts it out; a topic's name is none."
  }
}

variable "store_uri" {
  description = "Where the job stores results, oci://BUCKET@NAMESPACE/PREFIX; told in the message to the topic."
  type        = string
  default     = ""

  validation {
    condition     = can(regex("^(oci://[A-Za-z0-9._-]+@[A-Za-z0-9._-]+/[a-z0-9._-]+)?$", var.store_uri))
    error_message = "store_uri has the form oci://BUCKET@NAMESPACE/PREFIX; take the foundation's output."
  }
}

variable "toolkit" {
  description = "NVIDIA container toolkit, for images without: object in the bucket or https URL of the nvidia-container-toolkit-base RPM. null says that the image has it."
  type        = string
  default     = null

  validation {
    condition     = var.toolkit == null ? true : can(regex("^(packages/|https://)[A-Za-z0-9._/+~-]+\\.rpm$", var.toolkit))
    error_message = "toolkit is packages/NAME.rpm in the bucket or an https:// address of an .rpm; plain http is refused."
  }
}

variable "toolkit_sha256" {
  description = "SHA-256 of that RPM."
  type        = string
  default     = null

  validation {
    condition     = var.toolkit_sha256 == null ? true : can(regex("^[0-9a-f]{64}$", var.toolkit_sha256))
    error_message = "toolkit_sha256 is 64 hexadecimal digits, as sha256sum prints them."
  }
}

variable "run_id" {
  description = "The run's id: folder in the store, tag, name of the instance."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9._-]{0,99}$", var.run_id))
    error_message = "run_id has up to 100 lower-case letters, digits, dots, dashes and underscores: it is an object name and a tag."
  }
}

variable "owner" {
  description = "Who submitted the run; a tag, shown by list."
  type        = string
  default     = "unknown"

  validation {
    condition     = can(regex("^[A-Za-z0-9._@+-]{1,100}$", var.owner))
    error_message = "owner is a login or an address without spaces: it is a tag's value."
  }
}

variable "image" {
  description = "The container image by digest, HOST/NAMESPACE/REPOSITORY@sha256:…"
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9.-]+\\.[a-z]+(/[a-z0-9._-]+)+@sha256:[0-9a-f]{64}$", var.image))
    error_message = "image names its digest (HOST/NAMESPACE/REPOSITORY@sha256:…): a tag may mean another image by the time the instance pulls it."
  }
}

variable "image_cuda" {
  description = "CUDA version the image's torch is built with, such as 13.0; null for an image without CUDA."
  type        = string
  default     = "13.0"

  validation {
    condition     = var.image_cuda == null ? true : can(regex("^1[2-3]\\.[0-9]+$", var.image_cuda))
    error_message = "image_cuda is 12.x or 13.x: the driver branch that each needs is known for those."
  }
}

variable "image_arches" {
  description = "GPU architectures the image's torch has code for (torch.cuda.get_arch_list())."
  type        = list(string)
  default     = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"] # torch 2.14.1+cu130

  validation {
    condition     = alltrue([for arch in var.image_arches : can(regex("^sm_[0-9]{2,3}$", arch))])
    error_message = "image_arches are names such as sm_86."
  }
}

variable "image_gb" {
  description = "Size of the image unpacked, in GB; the boot volume must hold it twice beside the system."
  type        = number
  default     = 12

  validation {
    condition     = var.image_gb > 0
    error_message = "image_gb is more than 0: the boot volume is checked against it."
  }
}

variable "command" {
  description = "Words after the image's entrypoint; null is: run /spec.yaml --run-id RUN_ID."
  type        = list(string)
  default     = null

  validation {
    condition     = var.command == null ? true : length(var.command) > 0 && alltrue([for word in var.command : !strcontains(word, "\n")])
    error_message = "command is at least one word, none with a line break: words reach the instance a line each."
  }
}

variable "environment" {
  description = "Environment of the container beside what the README lists. No secrets: anybody who can read the instance's metadata sees them."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for name, value in var.environment : can(regex("^[A-Z_][A-Z0-9_]*$", name)) && !strcontains(value, "\n")])
    error_message = "environment has names of capitals, digits and underscores, and values without line breaks."
  }

  validation {
    condition     = alltrue([for name in keys(var.environment) : !can(regex("PASSWORD|SECRET|TOKEN|PRIVATE|_KEY$", name))])
    error_message = "environment is no place for secrets: instance metadata and the Terraform state show it. The instance signs in by itself."
  }
}

variable "shape" {
  description = "Shape of the instance, such as VM.GPU.A10.1."
  type        = string

  validation {
    condition     = can(regex("^(VM|BM)\\.[A-Za-z0-9.-]+$", var.shape))
    error_message = "shape is a name such as VM.GPU.A10.1."
  }
}

variable "shape_fallbacks" {
  description = "Shapes to take instead, in this order, where the capacity report has none of the one before."
  type        = list(string)
  default     = []

  validation {
    condition     = length(var.shape_fallbacks) <= 9
    error_message = "shape_fallbacks are nine at most: each is asked for in every availability domain."
  }
}

variable "gpu" {
  description = "Whether the job needs a GPU. false is for a trial on a cheap CPU shape."
  type        = bool
  default     = true
}

variable "ocpus" {
  description = "OCPUs of a flexible CPU shape."
  type        = number
  default     = 2

  validation {
    condition     = var.ocpus >= 1 && floor(var.ocpus) == var.ocpus
    error_message = "ocpus is a whole number of at least 1: OCI takes no less for a flexible shape."
  }
}

variable "memory_gb" {
  description = "Memory of a flexible CPU shape."
  type        = number
  default     = 16

  validation {
    condition     = var.memory_gb >= 1 && floor(var.memory_gb) == var.memory_gb
    error_message = "memory_gb is a whole number of at least 1: OCI takes no less for a flexible shape."
  }
}

variable "availability_domain" {
  description = "Full name of the availability domain; null asks the capacity report."
  type        = string
  default     = null

  validation {
    condition     = var.availability_domain == null ? true : can(regex(":.+-AD-[0-9]+$", var.availability_domain))
    error_message = "availability_domain is a full name with the tenancy's prefix, such as Uocm:EU-FRANKFURT-1-AD-1."
  }
}

variable "fault_domain" {
  description = "FAULT-DOMAIN-1, -2 or -3; null leaves it to OCI."
  type        = string
  default     = null

  validation {
    condition     = var.fault_domain == null ? true : can(regex("^FAULT-DOMAIN-[1-3]$", var.fault_domain))
    error_message = "fault_domain is FAULT-DOMAIN-1, FAULT-DOMAIN-2 or FAULT-DOMAIN-3."
  }
}

variable "preemptible" {
  description = "Half the price, and may be taken away at any time."
  type        = bool
  default     = false
}

variable "force" {
  description = "Launch although the table of shapes says no: it is dated, and the API has the last word."
  type        = bool
  default     = false
}

variable "nodes" {
  description = "Instances of the run."
  type        = number
  default     = 1

  validation {
    condition     = var.nodes >= 1 && var.nodes <= 64 && floor(var.nodes) == var.nodes
    error_message = "nodes is a whole number from 1 to 64."
  }
}

variable "rendezvous_port" {
  description = "TCP port on the first node where nodes meet."
  type        = number
  default     = 29400

  validation {
    condition     = var.rendezvous_port >= 29400 && var.rendezvous_port <= 60999
    error_message = "rendezvous_port lies between 29400 and 60999: the foundation lets nodes use those among themselves."
  }
}

variable "os_image_id" {
  description = "OCID of the instance's image; null takes the newest Oracle Linux GPU image for the shape."
  type        = string
  default     = null

  validation {
    condition     = var.os_image_id == null ? true : can(regex("^ocid1\\.image\\.", var.os_image_id))
    error_message = "os_image_id begins with ocid1.image.; the container's image goes under image."
  }
}

variable "boot_volume_gb" {
  description = "Size of the boot volume: system, image twice, data and the run's folder."
  type        = number
  default     = 150

  validation {
    condition     = var.boot_volume_gb >= 50 && var.boot_volume_gb <= 32768
    error_message = "boot_volume_gb lies between 50 and 32768: OCI offers no other."
  }
}

variable "boot_volume_vpus" {
  description = "Performance of the boot volume in VPUs a GB: 10 balanced, 20 higher, 30 to 120 ultra high."
  type        = number
  default     = 20

  validation {
    condition     = contains(concat([10, 20], range(30, 121, 10)), var.boot_volume_vpus)
    error_message = "boot_volume_vpus is 10, 20, or a multiple of 10 up to 120; 0 would let the GPU wait for the disk."
  }
}

variable "shm_gb" {
  description = "Size of the container's /dev/shm in GB."
  type        = number
  default     = 16

  validation {
    condition     = var.shm_gb >= 1
    error_message = "shm_gb is at least 1: loader workers die with a bus error in Docker's 64 MB."
  }
}

variable "max_duration" {
  description = "Seconds from launch after which the instance is gone, whatever happens."
  type        = number

  validation {
    condition     = var.max_duration >= 600 && var.max_duration <= 1209600 && floor(var.max_duration) == var.max_duration
    error_message = "max_duration lies between 600 seconds, which boot and pull alone may take, and 14 days."
  }
}

variable "launched" {
  description = "When the run was submitted (RFC 3339); max_duration counts from it. null is the time of the plan."
  type        = string
  default     = null

  validation {
    condition     = var.launched == null ? true : can(timeadd(var.launched, "0s"))
    error_message = "launched is a time such as 2026-11-24T13:00:00Z."
  }
}

variable "boot_timeout" {
  description = "Seconds after which an instance whose job has not started ends."
  type        = number
  default     = 1800

  validation {
    condition     = var.boot_timeout >= 120 && floor(var.boot_timeout) == var.boot_timeout
    error_message = "boot_timeout is a whole number of at least 120 seconds: the pull of the image is part of it."
  }
}

variable "first_step_timeout" {
  description = "Seconds from the job's start to its first training step, after which the instance ends."
  type        = number
  default     = 1800

  validation {
    condition     = var.first_step_timeout >= 60 && floor(var.first_step_timeout) == var.first_step_timeout
    error_message = "first_step_timeout is a whole number of at least 60 seconds: data and compilation come before the first step."
  }
}

variable "stop_grace" {
  description = "Seconds from SIGTERM to SIGKILL, for a last checkpoint and its upload."
  type        = number
  default     = 120

  validation {
    condition     = var.stop_grace >= 10 && var.stop_grace <= 600 && floor(var.stop_grace) == var.stop_grace
    error_message = "stop_grace lies between 10 and 600 seconds."
  }
}

variable "max_restarts" {
  description = "How often the job is started again on this instance after exit code 75."
  type        = number
  default     = 3

  validation {
    condition     = var.max_restarts >= 0 && floor(var.max_restarts) == var.max_restarts
    error_message = "max_restarts is a whole number of at least 0."
  }
}
