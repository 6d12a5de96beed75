//! Instances of Amazon EC2 that have a tag.

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use spothop_aws::{Ec2, Tagged};
use tokio::time::{MissedTickBehavior, interval};

use super::{Found, Source, Teller};
use crate::config;

/// The source.
#[derive(Debug)]
pub struct Ec2Tags {
    api: Ec2,
    config: config::inventory::Ec2,
}

impl Ec2Tags {
    /// Asks nothing yet.
    #[must_use]
    pub fn new(api: Ec2, config: config::inventory::Ec2) -> Self {
        Self { api, config }
    }

    async fn look(&self) -> Result<Vec<Found>, spothop_aws::Error> {
        let (tag, region) = (&self.config.tag, &self.config.region);
        let tagged = self.api.tagged(region, &tag.key, &tag.value).await?;
        Ok(tagged.into_iter().filter_map(|instance| self.host(instance)).collect())
    }

    /// A running instance as a host: what is being started is not one yet, what is being stopped is none any more.
    fn host(&self, instance: Tagged) -> Option<Found> {
        if instance.state != spothop_aws::InstanceState::Running {
            return None;
        }
        let address = std::net::SocketAddr::new(instance.private_address?.into(), self.config.port).into();
        let name = instance.tags.get(&self.config.name_tag).filter(|name| !name.is_empty());
        Some(Found { name: name.cloned().unwrap_or(instance.id), address })
    }
}

impl Source for Ec2Tags {
    fn name(&self) -> &'static str {
        "ec2"
    }

    fn run(self: Box<Self>, mut teller: Teller) -> BoxFuture<'static, ()> {
        async move {
            let mut ticks = interval(self.config.refresh);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                match self.look().await {
                    Ok(hosts) => teller.tell(hosts).await,
                    Err(error) => teller.complain(&error),
                }
            }
        }
        .boxed()
    }
}
