//! stub
/// c
#[derive(Debug)]
pub struct Charter;
/// r
#[derive(Debug)]
pub struct Registrar;
