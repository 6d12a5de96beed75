//! Instances that are launched at once, all or as many as there are.

use std::collections::BTreeMap;

use aws_sdk_ec2::operation::create_fleet::CreateFleetOutput;
use aws_sdk_ec2::types::{
    DefaultTargetCapacityType, FleetLaunchTemplateConfigRequest, FleetLaunchTemplateOverridesRequest,
    FleetLaunchTemplateSpecificationRequest, FleetOnDemandAllocationStrategy, FleetType, InstanceType,
    OnDemandOptionsRequest, ResourceType, SpotAllocationStrategy, SpotOptionsRequest, Tag, TagSpecification,
    TargetCapacitySpecificationRequest,
};
use tokio::time::timeout;

use crate::Ec2;
use crate::error::Error;

/// EC2's codes of "not here, not now": another pool, or the other market, may have some (Amazon EC2 API Reference, "Error codes").
const NO_CAPACITY: [&str; 5] = [
    "InsufficientInstanceCapacity",
    "InsufficientHostCapacity",
    "InsufficientReservedInstanceCapacity",
    "UnfulfillableCapacity",
    "SpotMaxPriceTooLow",
];

/// Codes of "this account may not have more", from the same place.
const LIMITS: [&str; 5] = [
    "MaxSpotInstanceCountExceeded",
    "MaxSpotFleetRequestCountExceeded",
    "InstanceLimitExceeded",
    "VcpuLimitExceeded",
    "FleetCapacityLimitExceeded",
];

/// How instances are paid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Market {
    /// By the spot price; EC2 may take them back.
    Spot,
    /// By the list.
    OnDemand,
}

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Order {
    /// The region.
    pub region: String,
    /// A launch template: its id (`lt-…`) or its name.
    pub template: String,
    /// Its version: a number, `$Default` or `$Latest`.
    pub version: String,
    /// Instance types that will do instead of the template's; empty: the template's.
    pub types: Vec<String>,
    /// Zones that will do; empty: wherever the template's subnet is.
    pub zones: Vec<String>,
    /// How they are paid.
    pub market: Market,
    /// How many, at least 1.
    pub count: u32,
    /// The most that all of them together may cost, in millionths of a dollar an hour.
    pub max_price_micros: u64,
    /// Up to 64 ASCII characters; EC2 takes a second order of the same token for the first one.
    pub token: String,
    /// What the instances are tagged with.
    pub tags: BTreeMap<String, String>,
}

/// What was launched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launched {
    /// The instances' ids; never none.
    pub instances: Vec<String>,
    /// Why there are not more, in EC2's words; empty if there are as many as were ordered.
    pub lacking: Vec<String>,
}

/// Why nothing was launched.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// EC2 has none in any of the pools.
    #[error(
        "EC2 has no such instances at present ({words}); allow more types and zones in [capacity.ec2], or the other market"
    )]
    NoCapacity {
        /// EC2's words.
        words: String,
    },
    /// The account's limit.
    #[error(
        "this account may not have more instances ({words}); raise its quota in Service Quotas, or use the other market"
    )]
    Limit {
        /// EC2's words.
        words: String,
    },
    /// A permission that launching needs besides ec2:CreateFleet.
    #[error(
        "the AWS credentials do not allow to launch instances ({words}): allow ec2:CreateFleet, ec2:RunInstances, ec2:CreateTags and, for a template with a role, iam:PassRole"
    )]
    Forbidden {
        /// EC2's words.
        words: String,
    },
    /// An order that differs from this one had its token before (code `IdempotentParameterMismatch`).
    #[error("EC2 had another order of this token")]
    TokenTaken,
    /// Any other refusal of every instance.
    #[error("EC2 launches nothing: {words}")]
    Refused {
        /// EC2's words.
        words: String,
    },
    /// The call itself failed.
    #[error(transparent)]
    Call(#[from] Error),
}

impl FleetError {
    /// Whether the same order in the other market may do better.
    #[must_use]
    pub fn other_market_may_do(&self) -> bool {
        matches!(self, Self::NoCapacity { .. } | Self::Limit { .. })
    }

    fn of(code: &str, words: String) -> Self {
        match code {
            _ if NO_CAPACITY.contains(&code) => Self::NoCapacity { words },
            _ if LIMITS.contains(&code) => Self::Limit { words },
            "UnauthorizedOperation" => Self::Forbidden { words },
            "IdempotentParameterMismatch" => Self::TokenTaken,
            _ => Self::Refused { words },
        }
    }
}

impl Ec2 {
    /// Launches what is ordered: as many as EC2 has now, from whichever pools it has them, and never later (a fleet of type
    /// `instant`). Answers within 5 s ([`LIMIT`](crate::LIMIT)) or not at all; then the same order, by its token, may be given again.
    ///
    /// # Errors
    /// Not one instance was launched, or it is not known.
    pub async fn launch(&self, order: &Order) -> Result<Launched, FleetError> {
        let call = self.client(&order.region).create_fleet();
        let call = call
            .r#type(FleetType::Instant)
            .client_token(&order.token)
            .launch_template_configs(template(order))
            .tag_specifications(tags(order));
        let count = i32::try_from(order.count).unwrap_or(i32::MAX);
        // EC2 takes dollars, as text.
        let price = format!("{}.{:06}", order.max_price_micros / 1_000_000, order.max_price_micros % 1_000_000);
        let capacity = TargetCapacitySpecificationRequest::builder().total_target_capacity(count);
        let call = match order.market {
            Market::Spot => call
                .target_capacity_specification(
                    capacity.default_target_capacity_type(DefaultTargetCapacityType::Spot).build(),
                )
                .spot_options(
                    SpotOptionsRequest::builder()
                        // The pools that are deep, the cheapest of them: what is launched in an emergency should not be taken back next.
                        .allocation_strategy(SpotAllocationStrategy::PriceCapacityOptimized)
                        .max_total_price(price)
                        .build(),
                ),
            Market::OnDemand => call
                .target_capacity_specification(
                    capacity.default_target_capacity_type(DefaultTargetCapacityType::OnDemand).build(),
                )
                .on_demand_options(
                    OnDemandOptionsRequest::builder()
                        .allocation_strategy(FleetOnDemandAllocationStrategy::LowestPrice)
                        .max_total_price(price)
                        .build(),
                ),
        };
        let answer = match timeout(self.limit, call.send()).await {
            Err(_) => return Err(Error::TimedOut { limit: self.limit }.into()),
            Ok(answer) => answer.map_err(|error| Error::of("ec2:CreateFleet", self.limit, error)),
        };
        match answer {
            Ok(answer) => read(&answer),
            // Some refusals come as the call's own.
            Err(Error::Refused { code, message }) => Err(FleetError::of(&code, format!("{code}: {message}"))),
            Err(error) => Err(error.into()),
        }
    }
}

fn template(order: &Order) -> FleetLaunchTemplateConfigRequest {
    let specification = FleetLaunchTemplateSpecificationRequest::builder().version(&order.version);
    let specification = if order.template.starts_with("lt-") {
        specification.launch_template_id(&order.template)
    } else {
        specification.launch_template_name(&order.template)
    };
    // Every type in every zone; where one of the two is left to the template, the other alone.
    let or_none = |all: &[String]| -> Vec<Option<String>> {
        if all.is_empty() { vec![None] } else { all.iter().cloned().map(Some).collect() }
    };
    let mut overrides = Vec::new();
    for kind in or_none(&order.types) {
        for zone in or_none(&order.zones) {
            if kind.is_some() || zone.is_some() {
                let kind = kind.as_deref().map(InstanceType::from);
                let one = FleetLaunchTemplateOverridesRequest::builder().set_instance_type(kind);
                overrides.push(one.set_availability_zone(zone).build());
            }
        }
    }
    FleetLaunchTemplateConfigRequest::builder()
        .launch_template_specification(specification.build())
        .set_overrides((!overrides.is_empty()).then_some(overrides))
        .build()
}

fn tags(order: &Order) -> TagSpecification {
    let tags = order.tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build());
    TagSpecification::builder().resource_type(ResourceType::Instance).set_tags(Some(tags.collect())).build()
}

fn read(answer: &CreateFleetOutput) -> Result<Launched, FleetError> {
    let instances: Vec<String> =
        answer.instances().iter().flat_map(|some| some.instance_ids()).map(ToString::to_string).collect();
    let words = |error: &aws_sdk_ec2::types::CreateFleetError| {
        let of = |text: Option<&str>| text.unwrap_or("no word").to_owned();
        let pool = error.launch_template_and_overrides().and_then(|pool| pool.overrides());
        let kind =
            pool.and_then(|pool| pool.instance_type()).map_or(String::new(), |kind| format!("{}: ", kind.as_str()));
        format!("{kind}{}: {}", of(error.error_code()), of(error.error_message()))
    };
    let lacking: Vec<String> = answer.errors().iter().map(words).collect();
    if !instances.is_empty() {
        return Ok(Launched { instances, lacking });
    }
    // What can be helped by launching elsewhere is the better news; what is told is all of it.
    let codes = || answer.errors().iter().filter_map(|error| error.error_code());
    let code = codes().find(|code| NO_CAPACITY.contains(code)).or_else(|| codes().find(|code| LIMITS.contains(code)));
    let code = code.or_else(|| codes().next()).unwrap_or("no reason");
    Err(FleetError::of(code, lacking.join("; ")))
}
