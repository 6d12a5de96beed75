//! What this machine costs on the spot market, and how likely EC2 is to have others of its kind: asked for now and then, so that others can
//! choose between this host and the next.

use std::sync::Arc;
use std::time::Duration;

use spothop_aws::{Ec2, Error};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::config::AwsProvider;
use crate::migration::{Context, chain};
use crate::notice::Complaint;

/// Prices "adjust gradually based on long-term trends" (EC2 user guide, "Spot Instances"), and so do scores.
const EVERY: Duration = Duration::from_secs(600);

/// Between two looks whether this machine is known by now, and after a failure.
const AGAIN: Duration = Duration::from_secs(10);

/// Where this machine is, in the words of its cloud.
struct Place {
    region: String,
    kind: Option<String>,
    zone: Option<String>,
    zone_id: Option<String>,
}

/// Asks for ever. What could not be asked stays as it was known.
pub async fn watch(api: Ec2, context: Arc<Context>) {
    let config = &context.config.provider.aws;
    if (1..3).contains(&config.placement_types.len()) {
        warn!(
            "EC2 gives fewer than three types a low placement score, whatever they are; name more in [provider.aws] placement_types"
        );
    }
    let mut complaint = Complaint::default();
    loop {
        let Some(place) = place(&context) else {
            sleep(AGAIN).await;
            continue;
        };
        let asked = ask(&api, config, &context, &place).await;
        let pause = match &asked {
            Ok(()) => EVERY,
            Err(_) => AGAIN,
        };
        match asked {
            Ok(()) => drop(complaint.succeeded()),
            Err(failure) if complaint.failed(Instant::now()) => {
                warn!(error = chain(&failure), "what this machine costs, or how likely it is to stay, cannot be asked");
            }
            Err(_) => {}
        }
        sleep(pause).await;
    }
}

/// None until the metadata service has said which instance this is.
fn place(context: &Context) -> Option<Place> {
    let machine = &context.capacity.machine;
    let word = |what: &std::sync::OnceLock<String>| what.get().cloned();
    let region = context.instance.get()?.region().to_owned();
    let place =
        Place { region, kind: word(&machine.machine_type), zone: word(&machine.zone), zone_id: word(&machine.zone_id) };
    // They are asked for a moment after the instance.
    (place.kind.is_some() && place.zone.is_some() && machine.spot.get().is_some()).then_some(place)
}

async fn ask(api: &Ec2, config: &AwsProvider, context: &Context, place: &Place) -> Result<(), Error> {
    let capacity = &context.capacity;
    let before = capacity.market();
    // What does not follow the spot price does not cost it.
    let is_spot = capacity.machine.spot.get() == Some(&true);
    if let (true, None, Some(kind), Some(zone)) =
        (config.spot_price && is_spot, context.config.host.price, &place.kind, &place.zone)
    {
        let price = api.spot_price(&place.region, kind, zone).await?;
        capacity.lock_market().price_micros = price;
    }
    if let (false, Some(zone_id)) = (config.placement_types.is_empty(), &place.zone_id) {
        let score = api.placement_score(&place.region, &config.placement_types, zone_id).await?;
        capacity.lock_market().placement_score = score;
    }
    let now = capacity.market();
    if now != before {
        info!(price_micros = now.price_micros, placement_score = now.placement_score, "the market of this machine");
    }
    Ok(())
}
