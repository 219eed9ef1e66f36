//! One binary for everything that needs no root and no containers.

mod controllers;
mod https;
mod tidy;
