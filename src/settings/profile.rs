//! The risk table of section 2, as text that goes through the same parser as flags and variables.

use super::Risk;

/// One risk level's defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    /// The level's name.
    pub name: &'static str,
    /// `--timeout`
    pub timeout: &'static str,
    /// `--grace`
    pub grace: &'static str,
    /// `--soft`
    pub soft: &'static str,
    /// `--hard`
    pub hard: &'static str,
    /// `--scrub-budget`
    pub scrub_budget: &'static str,
    /// `--monitoring`
    pub monitoring: &'static str,
    /// `--audit-level`
    pub audit_level: &'static str,
    /// `--audit-required`
    pub audit_required: &'static str,
    /// `--adaptive`
    pub adaptive: &'static str,
    /// `--env`
    pub env: &'static str,
    /// `--network`
    pub network: &'static str,
    /// `--filesystem`
    pub filesystem: &'static str,
    /// The Job's activeDeadlineSeconds.
    pub active_deadline_seconds: u32,
}

/// The table, one row a level.
pub const PROFILES: [(Risk, Profile); 4] = [
    (
        Risk::Low,
        Profile {
            name: "low",
            timeout: "300s",
            grace: "30s",
            soft: "10s",
            hard: "20s",
            scrub_budget: "8s",
            monitoring: "off",
            audit_level: "basic",
            audit_required: "no",
            adaptive: "no",
            env: "inherit",
            network: "allow",
            filesystem: "guard",
            active_deadline_seconds: 330,
        },
    ),
    (
        Risk::Medium,
        Profile {
            name: "medium",
            timeout: "180s",
            grace: "10s",
            soft: "5s",
            hard: "10s",
            scrub_budget: "8s",
            monitoring: "standard",
            audit_level: "standard",
            audit_required: "no",
            adaptive: "yes",
            env: "inherit",
            network: "allow",
            filesystem: "guard",
            active_deadline_seconds: 200,
        },
    ),
    (
        Risk::High,
        Profile {
            name: "high",
            timeout: "90s",
            grace: "5s",
            soft: "2s",
            hard: "5s",
            scrub_budget: "10s",
            monitoring: "aggressive",
            audit_level: "comprehensive",
            audit_required: "no",
            adaptive: "yes",
            env: "clean",
            network: "allow",
            filesystem: "guard",
            active_deadline_seconds: 120,
        },
    ),
    (
        Risk::Critical,
        Profile {
            name: "critical",
            timeout: "55s",
            grace: "2s",
            soft: "1s",
            hard: "2s",
            scrub_budget: "2s",
            monitoring: "aggressive",
            audit_level: "comprehensive",
            audit_required: "no",
            adaptive: "yes",
            env: "clean",
            network: "deny",
            filesystem: "confined",
            active_deadline_seconds: 60,
        },
    ),
];

impl Risk {
    /// The level's row.
    #[must_use]
    pub const fn profile(self) -> &'static Profile {
        let [(_, low), (_, medium), (_, high), (_, critical)] = &PROFILES;
        match self {
            Self::Low => low,
            Self::Medium => medium,
            Self::High => high,
            Self::Critical => critical,
        }
    }
}
