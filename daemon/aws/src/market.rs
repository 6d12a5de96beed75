//! What spot machines cost, and how likely EC2 is to have some.

use std::time::SystemTime;

use aws_sdk_ec2::primitives::DateTime;
use aws_sdk_ec2::types::InstanceType;
use tokio::time::timeout;

use crate::Ec2;
use crate::error::Error;

/// Linux without a licence, by both of its names: in a network of one's own (which all are, since EC2-Classic has ended) the second is right,
/// the first is what EC2 answers, and imitations know one of them.
const PRODUCTS: [&str; 2] = ["Linux/UNIX", "Linux/UNIX (Amazon VPC)"];

/// Scores in one answer; EC2 takes 10 to 1,000 (GetSpotPlacementScores, `MaxResults`). A region has up to six zones.
const SCORES: i32 = 30;

impl Ec2 {
    /// What an instance of this type costs now on the spot market of this zone, in millionths of a dollar an hour; none where EC2 names no
    /// price for it. Takes 5 s at most ([`LIMIT`](crate::LIMIT)), and needs the permission `ec2:DescribeSpotPriceHistory`.
    ///
    /// What is asked for begins and ends now: the price in force is "the last price change before the start time", which the answer has as
    /// well (DescribeSpotPriceHistory in the API Reference).
    ///
    /// # Errors
    /// Everything that keeps EC2 from saying it.
    pub async fn spot_price(&self, region: &str, kind: &str, zone: &str) -> Result<Option<u64>, Error> {
        let (call, now) = (self.client(region).describe_spot_price_history(), DateTime::from(SystemTime::now()));
        let call = call
            .instance_types(InstanceType::from(kind))
            .availability_zone(zone)
            .set_product_descriptions(Some(PRODUCTS.map(str::to_owned).to_vec()))
            .start_time(now)
            .end_time(now);
        let answer = match timeout(self.limit, call.send()).await {
            Err(_) => return Err(Error::TimedOut { limit: self.limit }),
            Ok(answer) => answer.map_err(|error| Error::of("ec2:DescribeSpotPriceHistory", self.limit, error))?,
        };
        // Imitations pass over filters that they do not know.
        let asked_for = answer.spot_price_history().iter().filter(|price| {
            price.instance_type().is_some_and(|is| is.as_str() == kind) && price.availability_zone() == Some(zone)
        });
        let Some(newest) = asked_for.max_by_key(|price| price.timestamp().map(DateTime::as_nanos)) else {
            return Ok(None);
        };
        let text = newest.spot_price().unwrap_or_default();
        let price = micros(text).ok_or_else(|| Error::Nonsense { detail: format!("`{text}` is no price") })?;
        Ok(Some(price))
    }

    /// How likely EC2 is to have one spot instance of any of these types in the zone of this id, from 1 to 10; none where it scores others
    /// only. Takes 5 s at most, and needs the permission `ec2:GetSpotPlacementScores`.
    ///
    /// Of one or two types, or of variations of one, "the returned placement score will always be low" (GetSpotPlacementScores).
    ///
    /// # Errors
    /// Everything that keeps EC2 from saying it.
    pub async fn placement_score(&self, region: &str, kinds: &[String], zone_id: &str) -> Result<Option<u8>, Error> {
        let call = self.client(region).get_spot_placement_scores();
        let call = call
            .set_instance_types(Some(kinds.to_vec()))
            .target_capacity(1)
            .single_availability_zone(true)
            .region_names(region)
            .max_results(SCORES);
        let answer = match timeout(self.limit, call.send()).await {
            Err(_) => return Err(Error::TimedOut { limit: self.limit }),
            Ok(answer) => answer.map_err(|error| Error::of("ec2:GetSpotPlacementScores", self.limit, error))?,
        };
        let scores = answer.spot_placement_scores();
        let Some(found) = scores.iter().find(|score| score.availability_zone_id() == Some(zone_id)) else {
            return Ok(None);
        };
        let score = found.score().and_then(|score| u8::try_from(score).ok()).filter(|score| (1..=10).contains(score));
        score.map(Some).ok_or_else(|| Error::Nonsense { detail: format!("{:?} is no placement score", found.score()) })
    }
}

/// Dollars as EC2 writes them (`0.031200`), in millionths; more decimals are rounded up.
fn micros(text: &str) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(part) {
        return None;
    }
    let (millionths, rest) = part.split_at(part.len().min(6));
    let micros: u64 = format!("{whole}{millionths:0<6}").parse().ok()?;
    Some(if rest.bytes().any(|digit| digit != b'0') { micros + 1 } else { micros })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_counted_in_millionths() {
        assert_eq!(micros("0.031200"), Some(31_200));
        assert_eq!(micros("1"), Some(1_000_000));
        assert_eq!(micros("0.0000001"), Some(1));
        for wrong in ["", ".5", "-1", "1,5", "1e3", "99999999999999999999"] {
            assert_eq!(micros(wrong), None, "{wrong}");
        }
    }
}
