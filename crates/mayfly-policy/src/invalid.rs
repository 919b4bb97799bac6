//! What is wrong with a profile file: all of it, each with its line and what to write instead.

use std::fmt;

/// A profile file that was refused. Nothing of it is used.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InvalidProfiles {
    problems: Vec<Problem>,
    untold: usize,
}

/// One thing that is wrong with a profile file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    /// Where, from 1.
    pub line: usize,
    /// In which profile, if it got as far as having a name.
    pub profile: Option<String>,
    /// At which key, if it is about one.
    pub field: Option<String>,
    /// What is wrong, as a sentence without a full stop.
    pub why: String,
    /// What to do about it, as a sentence without a full stop.
    pub remedy: String,
}

impl InvalidProfiles {
    pub(crate) const fn new(problems: Vec<Problem>, untold: usize) -> Self {
        Self { problems, untold }
    }

    /// Every problem, in the order of the file; never empty.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// How many more there are beyond [`crate::limits::PROBLEMS_MAX`].
    #[must_use]
    pub const fn untold(&self) -> usize {
        self.untold
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: ", self.line)?;
        if let Some(profile) = &self.profile {
            write!(f, "profile `{profile}`: ")?;
        }
        if let Some(field) = &self.field {
            write!(f, "`{field}`: ")?;
        }
        write!(f, "{}; {}", self.why, self.remedy)
    }
}

impl fmt::Display for InvalidProfiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.problems.iter().enumerate() {
            let gap = if n == 0 { "" } else { "\n" };
            write!(f, "{gap}{problem}")?;
        }
        if self.untold > 0 {
            write!(f, "\nand {} more", self.untold)?;
        }
        Ok(())
    }
}

impl std::error::Error for InvalidProfiles {}
