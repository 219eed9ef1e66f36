//! Places in an object and what its schema knows of them: the way down from a kind's type through fields and elements.

use super::merge_keys::MergeRule;
use super::schema::{Schemas, Shape, Type};

/// What is known about the values at one place; nothing, below fields that the schema does not have.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    schemas: &'a Schemas,
    of: Option<&'a Type>,
    /// Set at places that are no object of a type.
    shape: Option<&'a Shape>,
}

impl<'a> Place<'a> {
    /// An object of the type itself.
    pub fn root(schemas: &'a Schemas, of: &'a Type) -> Place<'a> {
        Place { schemas, of: Some(of), shape: None }
    }

    fn at(self, shape: Option<&'a Shape>) -> Place<'a> {
        match shape {
            Some(Shape::Object(id)) => Place { of: Some(self.schemas.get(*id)), shape: None, ..self },
            shape => Place { of: None, shape, ..self },
        }
    }

    pub fn field(self, name: &str) -> (Place<'a>, Option<&'static MergeRule>) {
        match (self.of.and_then(|of| of.field(name)), self.shape) {
            (Some(field), _) => (self.at(Some(&field.shape)), field.rule),
            (None, Some(Shape::Map(inner))) => (self.at(Some(inner)), None),
            _ => (self.at(None), None),
        }
    }

    pub fn item(self) -> Place<'a> {
        match self.shape {
            Some(Shape::List(inner)) => self.at(Some(inner)),
            _ => self.at(None),
        }
    }
}
