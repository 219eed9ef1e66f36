//! One generic registry for all kinds over raw JSON.
