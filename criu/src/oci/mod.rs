//! The OCI runtime `spothop-oci`: runc, except that `create` of a container which carries our annotation restores it.
