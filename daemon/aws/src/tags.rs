//! Instances by a tag.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use aws_sdk_ec2::types::{Filter, Instance};
use tokio::time::timeout;

use crate::error::Error;
use crate::{Ec2, InstanceState, state};

/// Instances in one answer; EC2 takes 5 to 1,000 (DescribeInstances, `MaxResults`).
const PAGE: i32 = 500;

/// Answers that are put together at most: 50,000 instances. An API that never comes to an end is not EC2.
const MOST_PAGES: usize = 100;

/// An instance that has the tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tagged {
    /// Its id.
    pub id: String,
    /// Its state.
    pub state: InstanceState,
    /// Its first private address; none before it has one and after it is terminated.
    pub private_address: Option<Ipv4Addr>,
    /// All of its tags.
    pub tags: BTreeMap<String, String>,
}

impl Ec2 {
    /// All instances in this region with this tag, whatever their state, by id. Each of its answers takes 5 s at most
    /// ([`LIMIT`](crate::LIMIT)).
    ///
    /// EC2 is asked for these only, and what it answers is looked at again: imitations pass over filters that they do not know, and a
    /// `*` or `?` in a filter's value stands for other characters.
    ///
    /// # Errors
    /// Everything that keeps EC2 from saying it; half a list is none.
    pub async fn tagged(&self, region: &str, key: &str, value: &str) -> Result<Vec<Tagged>, Error> {
        let ec2 = self.client(region);
        let filter = Filter::builder().name(format!("tag:{key}")).values(value).build();
        let mut found = Vec::new();
        let mut next = None;
        for _ in 0..MOST_PAGES {
            let page = ec2.describe_instances().filters(filter.clone()).max_results(PAGE).set_next_token(next.take());
            let page = match timeout(self.limit, page.send()).await {
                Err(_) => return Err(Error::TimedOut { limit: self.limit }),
                Ok(page) => page.map_err(|error| Error::of("ec2:DescribeInstances", self.limit, error))?,
            };
            let instances = page.reservations().iter().flat_map(|reservation| reservation.instances());
            found.extend(instances.filter_map(tagged).filter(|one| one.tags.get(key).is_some_and(|is| is == value)));
            next = page.next_token().filter(|token| !token.is_empty()).map(str::to_owned);
            if next.is_none() {
                found.sort_by(|one, other| one.id.cmp(&other.id));
                return Ok(found);
            }
        }
        Err(Error::Nonsense { detail: format!("more than {MOST_PAGES} pages of instances") })
    }
}

fn tagged(instance: &Instance) -> Option<Tagged> {
    let tags = instance.tags().iter();
    Some(Tagged {
        id: instance.instance_id()?.to_owned(),
        state: state(instance)?,
        private_address: instance.private_ip_address().and_then(|address| address.parse().ok()),
        tags: tags
            .filter_map(|tag| Some((tag.key()?.to_owned(), tag.value().unwrap_or_default().to_owned())))
            .collect(),
    })
}
