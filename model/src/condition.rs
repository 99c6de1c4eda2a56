//! Conditions: what a user should know, beside every value that could not be made as asked.

/// Something that is not as it should be, with what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Condition {
    /// The object it is about, e.g. `Node/n2` or `NetworkConfig/default`.
    pub about: String,
    /// Path of the field, e.g. `spec.vxlan.vni`; empty where no field is to blame.
    pub field: String,
    /// One word, for machines and for searching.
    pub reason: &'static str,
    /// What is wrong, with the value.
    pub message: String,
    /// What to do.
    pub fix: String,
}
