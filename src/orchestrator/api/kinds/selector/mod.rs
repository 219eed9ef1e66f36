//! Label and field selectors, from query parameters and from objects.

mod fields;
mod labels;

pub use fields::FieldSelector;
pub use labels::LabelSelector;
