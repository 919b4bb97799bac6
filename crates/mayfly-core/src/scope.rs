//! What a task may be used for: four dimensions, and the rule by which authority only narrows.
//!
//! A scope is a claim about use. The registrar holds tokens to their audiences itself; actions,
//! resources and tools are judged by whoever acts on a credential. What the registrar answers for in
//! all four is the direction: nothing below a task is wider than the task (P12), nothing of a profile
//! is wider than its profile.

use alloc::{collections::BTreeSet, string::String, sync::Arc};

/// One dimension of authority, by the word that refusals use.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Dimension {
    /// What may be done.
    Actions,
    /// To what.
    Resources,
    /// Before whom a token may be shown.
    Audiences,
    /// With which tools.
    Tools,
}

impl Dimension {
    /// Every dimension of a scope.
    pub const ALL: [Self; 4] = [Self::Actions, Self::Resources, Self::Audiences, Self::Tools];

    /// The stable word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Actions => "actions",
            Self::Resources => "resources",
            Self::Audiences => "audiences",
            Self::Tools => "tools",
        }
    }
}

/// How far one dimension reaches.
///
/// A name that ends with `*` stands for everything that begins with what is before it; any other
/// stands for itself.
#[derive(Clone, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub enum Extent {
    /// Nothing was said, so nothing is left out.
    #[default]
    Any,
    /// These, and an empty set is nothing at all. What was said once is shared by all who inherit it.
    Only(Arc<BTreeSet<String>>),
}

impl Extent {
    /// Only these names.
    pub fn only(names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self::Only(Arc::new(names.into_iter().map(Into::into).collect()))
    }

    /// Whether `name` is within it.
    #[must_use]
    pub fn permits(&self, name: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Only(names) => names.iter().any(|held| covers(held, name)),
        }
    }

    /// Whether everything that this reaches is reached by `outer` too. An outer bound that is silent
    /// bounds nothing; an inner one that is silent is as wide as can be.
    #[must_use]
    pub fn is_within(&self, outer: &Self) -> bool {
        match (self, outer) {
            (_, Self::Any) => true,
            // A lone `*` reaches everything, so it is as silent as silence.
            (Self::Any, Self::Only(names)) => names.contains("*"),
            (Self::Only(names), Self::Only(_)) => names.iter().all(|name| outer.permits(name)),
        }
    }

    /// This, or `outer` where nothing was said.
    #[must_use]
    pub fn or(self, outer: &Self) -> Self {
        match self {
            Self::Any => outer.clone(),
            Self::Only(_) => self,
        }
    }

    /// Whether something was said.
    #[must_use]
    pub const fn is_told(&self) -> bool {
        match self {
            Self::Any => false,
            Self::Only(_) => true,
        }
    }
}

/// Whether the name `held` stands for all that `name` stands for.
fn covers(held: &str, name: &str) -> bool {
    match held.strip_suffix('*') {
        Some(stem) => name.strip_suffix('*').unwrap_or(name).starts_with(stem),
        None => held == name,
    }
}

/// What a task may be used for.
#[derive(Clone, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Scope {
    /// What may be done.
    pub actions: Extent,
    /// To what.
    pub resources: Extent,
    /// Before whom its tokens may be shown.
    pub audiences: Extent,
    /// With which tools.
    pub tools: Extent,
}

impl Scope {
    /// The extent of one dimension.
    #[must_use]
    pub const fn extent(&self, dimension: Dimension) -> &Extent {
        match dimension {
            Dimension::Actions => &self.actions,
            Dimension::Resources => &self.resources,
            Dimension::Audiences => &self.audiences,
            Dimension::Tools => &self.tools,
        }
    }

    /// The first dimension in which this is wider than `outer`, if there is one.
    #[must_use]
    pub fn exceeds(&self, outer: &Self) -> Option<Dimension> {
        let wider = |of: &Dimension| !self.extent(*of).is_within(outer.extent(*of));
        Dimension::ALL.into_iter().find(wider)
    }

    /// Whether this is within `outer` and narrower in at least one dimension.
    #[must_use]
    pub fn is_narrower_than(&self, outer: &Self) -> bool {
        self.exceeds(outer).is_none() && outer.exceeds(self).is_some()
    }

    /// This, and `outer` where nothing was said: what is not claimed is inherited, never widened.
    #[must_use]
    pub fn or(self, outer: &Self) -> Self {
        Self {
            actions: self.actions.or(&outer.actions),
            resources: self.resources.or(&outer.resources),
            audiences: self.audiences.or(&outer.audiences),
            tools: self.tools.or(&outer.tools),
        }
    }

    /// Whether every name can stand in a record: short enough, few enough, printable.
    #[must_use]
    pub fn is_well_formed(&self) -> bool {
        Dimension::ALL.into_iter().all(|dimension| self.is_well_formed_in(dimension))
    }

    /// The same of one dimension.
    #[must_use]
    pub fn is_well_formed_in(&self, dimension: Dimension) -> bool {
        let fits = |name: &String| {
            let stars = name.strip_suffix('*').unwrap_or(name).contains('*');
            (1..=crate::limits::SCOPE_NAME_BYTES_MAX).contains(&name.len())
                && !stars
                && !name.chars().any(char::is_control)
        };
        match self.extent(dimension) {
            Extent::Any => true,
            Extent::Only(names) => {
                names.len() <= crate::limits::SCOPE_NAMES_MAX && names.iter().all(fits)
            }
        }
    }
}
