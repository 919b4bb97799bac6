//! The words that cross a socket or reach the disk, spelled once in `proto/` and nowhere else.
//!
//! Everything under `src/gen` is written by `tests/fresh.rs` and committed, so a build needs neither
//! protoc nor a build script, and a change of the wire shows in review as a change of code. The test
//! fails when the two differ; to write the files anew:
//!
//! ```text
//! MAYFLY_BLESS=1 cargo test -p mayfly-proto
//! ```
//!
//! Three things are done by hand. Messages with a private key or a bearer token have a `Debug` that
//! keeps it to itself, because sooner or later somebody logs a response. Those of Envoy's, which carry
//! keys as copies of their own, overwrite them when they are dropped. And the descriptors of all files
//! are kept as bytes, for gRPC reflection.
#![forbid(unsafe_code)]

mod secret;

#[expect(
    missing_docs,
    unused_qualifications,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::large_enum_variant,
    clippy::missing_errors_doc,
    clippy::too_many_lines,
    reason = "what prost and tonic generate follows their style, not ours"
)]
mod generated {
    /// The Workload API: `SpiffeWorkloadAPI`, which has no package.
    pub mod workload {
        include!("gen/spiffe.workload.rs");
    }
    /// The Broker API: `spiffe.broker.API`.
    pub mod broker {
        include!("gen/spiffe.broker.rs");
    }
    /// Version 1: feed, operator API and journal.
    pub mod v1 {
        include!("gen/mayfly.v1.rs");
    }
    /// Envoy's packages, nested as their names are, because the generated code climbs along them.
    pub(crate) mod envoy {
        pub(crate) mod config {
            pub(crate) mod core {
                pub mod v3 {
                    include!("gen/envoy.core.rs");
                }
            }
        }
        pub(crate) mod extensions {
            pub(crate) mod transport_sockets {
                pub(crate) mod tls {
                    pub mod v3 {
                        include!("gen/envoy.tls.rs");
                    }
                }
            }
        }
        pub(crate) mod service {
            pub(crate) mod discovery {
                pub mod v3 {
                    include!("gen/envoy.discovery.rs");
                }
            }
            pub(crate) mod secret {
                pub mod v3 {
                    include!("gen/envoy.secret.rs");
                }
            }
        }
        pub(crate) mod r#type {
            pub mod v3 {
                include!("gen/envoy.type.rs");
            }
        }
    }
    pub(crate) mod google {
        pub mod rpc {
            include!("gen/google.rpc.rs");
        }
    }
}

/// SPIFFE's own services, under the names that stand on the wire.
pub mod spiffe {
    pub use crate::generated::{broker, workload};
}

/// What Mayfly reads and writes of Envoy's API, version 3.
pub mod envoy {
    pub use crate::generated::{
        envoy::{
            config::core::v3 as core,
            extensions::transport_sockets::tls::v3 as tls,
            service::{discovery::v3 as discovery, secret::v3 as secret},
            r#type::v3 as r#type,
        },
        google::rpc,
    };
}

/// What a gRPC status says beyond its code.
pub mod google {
    pub use crate::generated::google::rpc;
}

/// Mayfly's own messages.
pub mod mayfly {
    pub use crate::generated::v1;
}

/// A serialised `FileDescriptorSet` of every file in `proto/` and what it imports, without comments.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("gen/descriptors.bin");
