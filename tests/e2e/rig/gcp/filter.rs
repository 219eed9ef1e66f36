//! The part of Google's filter grammar that is used; anything else is a mistake of the caller.

use regex::Regex;
use serde_json::Value;

/// Whether a thing is meant; an error for a filter that is not understood.
pub fn matches(filter: &str, thing: &Value) -> Result<bool, String> {
    if filter.is_empty() {
        return Ok(true);
    }
    if filter.contains(" OR ") {
        let parts = filter.split(" OR ").map(|part| matches(part.trim_matches(['(', ')']), thing)).collect::<Result<Vec<_>, _>>()?;
        return Ok(parts.contains(&true));
    }
    let filter = filter.trim_matches(['(', ')']);
    let unknown = || format!("filter not understood: {filter}");
    if let Some((field, pattern)) = filter.split_once(" eq ") {
        let pattern = Regex::new(&format!("^(?:{})$", pattern.trim_matches('"'))).map_err(|_| unknown())?;
        return Ok(field_of(thing, field).is_some_and(|text| pattern.is_match(text)));
    }
    let (field, value) = filter.split_once('=').ok_or_else(unknown)?;
    Ok(field_of(thing, field.trim()).is_some_and(|text| text == value.trim().trim_matches('"')))
}

fn field_of<'a>(thing: &'a Value, field: &str) -> Option<&'a str> {
    field.split('.').try_fold(thing, |value, part| value.get(part))?.as_str()
}
