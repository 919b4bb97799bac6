//! What is known of the Envoy that asks.

use mayfly_proto::envoy::core::{Node, node::UserAgentVersionType};
use prost_types::value::Kind;

/// The key in a node's metadata with which an operator asks for the plain form. It is SPIRE's.
const PLAIN: &str = "disable_spiffe_cert_validation";

/// The first version that has the SPIFFE validator.
const SPIFFE_SINCE: (u32, u32) = (1, 18);

/// How a client wants to be told whom to trust.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Form {
    /// The configuration of Envoy's SPIFFE validator, which picks the bundle by the peer's trust domain.
    #[default]
    Spiffe,
    /// `trusted_ca` and `crl`, of one trust domain.
    Plain,
}

impl Form {
    /// What `node` says. Who says nothing of itself is taken for a client of today.
    pub(crate) fn of(node: &Node) -> Self {
        let is_old = version(node).is_some_and(|version| version < SPIFFE_SINCE);
        if is_old || wants_plain(node) { Self::Plain } else { Self::Spiffe }
    }
}

fn wants_plain(node: &Node) -> bool {
    let field = node.metadata.as_ref().and_then(|metadata| metadata.fields.get(PLAIN));
    match field.and_then(|value| value.kind.as_ref()) {
        Some(Kind::BoolValue(plain)) => *plain,
        Some(Kind::StringValue(text)) => text.eq_ignore_ascii_case("true"),
        Some(
            Kind::NullValue(_) | Kind::NumberValue(_) | Kind::StructValue(_) | Kind::ListValue(_),
        )
        | None => false,
    }
}

fn version(node: &Node) -> Option<(u32, u32)> {
    match node.user_agent_version_type.as_ref()? {
        UserAgentVersionType::UserAgentBuildVersion(build) => {
            build.version.map(|version| (version.major_number, version.minor_number))
        }
        UserAgentVersionType::UserAgentVersion(text) => {
            let mut numbers = text.split(['.', '-', '+']).map(|number| number.parse().ok());
            Some((numbers.next()??, numbers.next()??))
        }
    }
}

#[cfg(test)]
mod tests {
    use mayfly_proto::envoy::{core::BuildVersion, r#type::SemanticVersion};
    use prost_types::{Struct, Value};

    use super::*;

    fn with_metadata(kind: Kind) -> Node {
        let value = Value { kind: Some(kind) };
        let fields = [(PLAIN.to_owned(), value)].into();
        Node { metadata: Some(Struct { fields }), ..Node::default() }
    }

    fn with_build(major_number: u32, minor_number: u32) -> Node {
        let version = Some(SemanticVersion { major_number, minor_number, patch: 0 });
        let build = UserAgentVersionType::UserAgentBuildVersion(BuildVersion { version });
        Node { user_agent_version_type: Some(build), ..Node::default() }
    }

    fn with_text(text: &str) -> Node {
        let version = UserAgentVersionType::UserAgentVersion(text.into());
        Node { user_agent_version_type: Some(version), ..Node::default() }
    }

    #[test]
    fn point_112_the_plain_form_is_for_who_asks_for_it_and_for_envoy_before_1_18() {
        for node in [
            with_metadata(Kind::BoolValue(true)),
            with_metadata(Kind::StringValue("true".into())),
            with_metadata(Kind::StringValue("True".into())),
            with_build(1, 17),
            with_build(0, 99),
            with_text("1.17.4-dev"),
        ] {
            assert_eq!(Form::of(&node), Form::Plain, "{node:?}");
        }
        for node in [
            Node::default(),
            with_metadata(Kind::BoolValue(false)),
            with_metadata(Kind::StringValue("no".into())),
            with_metadata(Kind::NumberValue(1.0)),
            with_build(1, 18),
            with_build(1, 40),
            with_build(2, 0),
            with_text("1.40.0"),
            with_text("grpc-go"),
        ] {
            assert_eq!(Form::of(&node), Form::Spiffe, "{node:?}");
        }
    }
}
