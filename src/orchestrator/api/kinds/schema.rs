//! The schemas of the built-in kinds, compiled from k8s-openapi into a compact tree on first use: descriptions are dropped (OpenAPI
//! generates its documents afresh), names are stored once per type, not once per place where the type appears.

use super::merge_keys::{self, MergeRule};
use crate::blueprint::quantity::Quantity;
use k8s_openapi::api::{apps, authentication, authorization, autoscaling, coordination, core, discovery, policy, storage};
use k8s_openapi::apimachinery::pkg::apis::meta;
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::sync::LazyLock;

/// Where documents keep their types; references start with `#` and this.
const PLACE: &str = "#/components/schemas/";

/// What JSON a place may hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shape {
    Text,
    /// RFC 3339, seconds or finer.
    Time,
    /// Text in base64.
    Bytes,
    Integer32,
    Integer64,
    Number,
    Boolean,
    Quantity,
    IntOrText,
    /// Any JSON: raw extensions and the like.
    Anything,
    List(Box<Shape>),
    Map(Box<Shape>),
    Object(TypeId),
}

/// An index into `Schemas`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TypeId(u32);

#[derive(Debug)]
pub struct Type {
    /// Such as `io.k8s.api.core.v1.PodSpec`.
    pub name: Box<str>,
    pub id: TypeId,
    /// Sorted by name.
    fields: Box<[Field]>,
}

#[derive(Debug)]
pub struct Field {
    pub name: Box<str>,
    pub shape: Shape,
    pub required: bool,
    pub rule: Option<&'static MergeRule>,
}

impl Type {
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.binary_search_by(|field| (*field.name).cmp(name)).ok().map(|at| &self.fields[at])
    }
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }
    /// `PodSpec`.
    pub fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or(&self.name)
    }
}

/// All types that a served kind reaches.
#[derive(Debug)]
pub struct Schemas {
    types: Vec<Type>,
    by_name: HashMap<Box<str>, TypeId>,
}

impl Schemas {
    pub fn builtin() -> &'static Schemas {
        static BUILTIN: LazyLock<Schemas> = LazyLock::new(|| Schemas::compile(&definitions(|_| true)));
        &BUILTIN
    }
    pub fn find(&self, name: &str) -> Option<&Type> {
        self.by_name.get(name).map(|id| self.get(*id))
    }
    pub fn get(&self, id: TypeId) -> &Type {
        &self.types[id.0 as usize]
    }
    /// The type of a kind's objects, if it has a schema.
    pub fn of(&self, row: &super::KindRow) -> Option<&Type> {
        self.find(row.schema.as_deref()?)
    }
    pub fn len(&self) -> usize {
        self.types.len()
    }
    pub fn is_empty(&self) -> bool {
        self.types.is_empty()
    }

    fn compile(definitions: &Map<String, Value>) -> Schemas {
        // Leaf types (times, quantities) are shapes, so only definitions with properties get an id.
        let named = definitions.iter().filter(|(_, schema)| schema.get("properties").is_some());
        let by_name: HashMap<Box<str>, TypeId> =
            named.clone().enumerate().map(|(at, (name, _))| (name.as_str().into(), TypeId(at as u32))).collect();
        let compiler = Compiler { definitions, by_name: &by_name };
        let types = named.map(|(name, schema)| compiler.type_of(name, schema)).collect();
        Schemas { types, by_name }
    }
}

struct Compiler<'a> {
    definitions: &'a Map<String, Value>,
    by_name: &'a HashMap<Box<str>, TypeId>,
}

impl Compiler<'_> {
    fn type_of(&self, name: &str, schema: &Value) -> Type {
        let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let mut fields: Vec<Field> = schema["properties"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(field, schema)| Field {
                name: field.as_str().into(),
                shape: self.shape(schema),
                required: required.contains(&field.as_str()),
                rule: merge_keys::rule(name, field),
            })
            .collect();
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        Type { name: name.into(), id: self.by_name[name], fields: fields.into() }
    }
    fn shape(&self, schema: &Value) -> Shape {
        let text = |name: &str| schema[name].as_str().unwrap_or_default();
        if let Some(name) = text("$ref").strip_prefix(PLACE) {
            return match self.by_name.get(name) {
                Some(id) => Shape::Object(*id),
                None if name.ends_with(".Quantity") => Shape::Quantity,
                None => self.definitions.get(name).map_or(Shape::Anything, |schema| self.shape(schema)),
            };
        }
        if schema["x-kubernetes-int-or-string"] == true {
            return Shape::IntOrText;
        }
        match (text("type"), text("format")) {
            ("string", "date-time") => Shape::Time,
            ("string", "byte") => Shape::Bytes,
            ("string", _) => Shape::Text,
            ("integer", "int32") => Shape::Integer32,
            ("integer", _) => Shape::Integer64,
            ("number", _) => Shape::Number,
            ("boolean", _) => Shape::Boolean,
            ("array", _) => Shape::List(Box::new(self.shape(&schema["items"]))),
            ("object", _) if schema["additionalProperties"].is_object() => {
                Shape::Map(Box::new(self.shape(&schema["additionalProperties"])))
            }
            _ => Shape::Anything,
        }
    }
}

/// The JSON schemas of the types that the wanted groups' kinds reach, by name, references as in OpenAPI v3. Large: do not keep it.
/// `wanted` gets a schema name's start, such as `io.k8s.api.apps.v1.`.
pub fn definitions(wanted: impl Fn(&str) -> bool) -> Map<String, Value> {
    let mut generator = SchemaGenerator::new(SchemaSettings::openapi3());
    macro_rules! add {
        ($($kind:ty),* $(,)?) => {
            $(if wanted(&<$kind as schemars::JsonSchema>::schema_name()) {
                generator.subschema_for::<$kind>();
            })*
        };
    }
    add!(
        core::v1::Binding,
        core::v1::ConfigMap,
        core::v1::Event,
        core::v1::Namespace,
        core::v1::Node,
        core::v1::PersistentVolume,
        core::v1::PersistentVolumeClaim,
        core::v1::Pod,
        core::v1::Secret,
        core::v1::Service,
        core::v1::ServiceAccount,
        apps::v1::ControllerRevision,
        apps::v1::DaemonSet,
        apps::v1::Deployment,
        apps::v1::ReplicaSet,
        authentication::v1::SelfSubjectReview,
        authentication::v1::TokenRequest,
        authorization::v1::SelfSubjectAccessReview,
        autoscaling::v1::Scale,
        coordination::v1::Lease,
        discovery::v1::EndpointSlice,
        policy::v1::Eviction,
        storage::v1::StorageClass,
        meta::v1::DeleteOptions,
        meta::v1::ObjectMeta,
    );
    generator.take_definitions(false)
}

/// Brings an object to the form that upstream would answer with: explicit nulls of known fields mean "not there", and quantities given
/// as numbers become text. Unknown fields stay as they are.
pub fn normalise(row: &super::KindRow, object: &mut Value) {
    let schemas = Schemas::builtin();
    if let (Some(of), Some(object)) = (schemas.of(row), object.as_object_mut()) {
        normalise_object(schemas, of, object);
    }
}

fn normalise_object(schemas: &Schemas, of: &Type, object: &mut Map<String, Value>) {
    object.retain(|name, value| !value.is_null() || of.field(name).is_none());
    for (name, value) in object.iter_mut() {
        if let Some(field) = of.field(name) {
            normalise_value(schemas, &field.shape, value);
        }
    }
}

fn normalise_value(schemas: &Schemas, shape: &Shape, value: &mut Value) {
    match (shape, value) {
        (Shape::Object(id), Value::Object(object)) => normalise_object(schemas, schemas.get(*id), object),
        (Shape::List(inner), Value::Array(list)) => list.iter_mut().for_each(|item| normalise_value(schemas, inner, item)),
        (Shape::Map(inner), Value::Object(map)) => map.values_mut().for_each(|item| normalise_value(schemas, inner, item)),
        (Shape::Quantity, value @ Value::Number(_)) => *value = quantity_text(value),
        _ => {}
    }
}

/// `0.5` becomes `500m`; whole numbers keep their digits.
fn quantity_text(number: &Value) -> Value {
    match Quantity::from_value(number) {
        Ok(quantity) if !number.is_i64() && !number.is_u64() => format!("{}m", quantity.millis()).into(),
        _ => number.to_string().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orchestrator::api::kinds::Registry;
    use serde_json::json;

    #[test]
    fn every_row_with_a_schema_name_has_a_schema() {
        for row in Registry::builtin().all().iter().filter(|row| row.schema.is_some()) {
            assert!(Schemas::builtin().of(row).is_some(), "{}", row.kind);
        }
    }

    #[test]
    fn every_merge_rule_names_a_field_of_the_schemas() {
        let schemas = Schemas::builtin();
        let used = schemas.types.iter().flat_map(|of| of.fields()).filter(|field| field.rule.is_some()).count();
        assert_eq!(used, merge_keys::count());
    }

    #[test]
    fn shapes_follow_the_types() {
        let schemas = Schemas::builtin();
        let check = |of: &str, field: &str, shape: Shape| {
            let of = schemas.find(of).expect(of);
            assert_eq!(of.field(field).expect(field).shape, shape, "{field}");
        };
        check("io.k8s.api.core.v1.ResourceRequirements", "limits", Shape::Map(Box::new(Shape::Quantity)));
        check("io.k8s.api.core.v1.ServicePort", "targetPort", Shape::IntOrText);
        check("io.k8s.api.core.v1.Secret", "data", Shape::Map(Box::new(Shape::Bytes)));
        check("io.k8s.api.core.v1.PodSpec", "terminationGracePeriodSeconds", Shape::Integer64);
        check("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta", "creationTimestamp", Shape::Time);
        check("io.k8s.api.apps.v1.ControllerRevision", "data", Shape::Anything);
    }

    #[test]
    fn numbers_become_quantities_and_nulls_disappear() {
        let row = Registry::builtin().find("", "v1", "pods").expect("served");
        let mut pod = json!({"metadata": {"name": "a", "creationTimestamp": null, "mine": null},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": 1, "memory": "1Gi", "x/y": 0.5}}, "args": null}]}});
        normalise(row, &mut pod);
        assert_eq!(pod["metadata"], json!({"name": "a", "mine": null}));
        assert_eq!(
            pod["spec"]["containers"][0],
            json!({"name": "c", "resources": {"limits": {"cpu": "1", "memory": "1Gi", "x/y": "500m"}}})
        );
    }
}
