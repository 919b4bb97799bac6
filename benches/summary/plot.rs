//! A series on paper. Where both axes count powers of ten it shows how a cost grows; where they count equal
//! steps, what was seen as time went by.

use crate::output::Series;

/// A drawing and what is said below it.
pub(crate) struct Plot {
    pub(crate) file: String,
    pub(crate) svg: String,
    pub(crate) caption: String,
}

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 340.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 34.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;

/// About as many lines across a course.
const LINES: f64 = 6.0;

/// What the sides count.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Paper {
    /// Powers of ten on both, so that a power law is a straight line.
    Powers,
    /// Equal steps from nothing on, so that what stands still is level.
    Even,
}

impl Paper {
    const fn of(series: &Series) -> Self {
        if series.is_course { Self::Even } else { Self::Powers }
    }

    /// What is drawn. What is not above nothing has no place among powers of ten.
    fn points(self, series: &Series) -> Vec<(f64, f64)> {
        let fits = |(n, cost): &&(f64, f64)| self == Self::Even || (*n > 0.0 && *cost > 0.0);
        let place = |(n, cost): &(f64, f64)| match self {
            Self::Powers => (n.log10(), cost.log10()),
            Self::Even => (*n, *cost),
        };
        series.points.iter().filter(fits).map(place).collect()
    }

    /// What is said of it in a few words.
    fn sum_up(self, points: &[(f64, f64)]) -> String {
        match self {
            Self::Powers => slope(points).map_or_else(
                || "too few points for an exponent".to_owned(),
                |exponent| format!("exponent {exponent:.2}"),
            ),
            Self::Even => {
                let most = points.iter().map(|point| point.1).fold(0.0, f64::max);
                let last = points.last().map_or(0.0, |point| point.1);
                format!("at most {most:.0}, {last:.0} at last")
            }
        }
    }

    fn mark(self, value: f64) -> String {
        match self {
            Self::Powers => power(value),
            Self::Even => format!("{value}"),
        }
    }
}

/// Values between which a side lies, and those that have a line.
#[derive(Clone, Copy)]
struct Side {
    low: f64,
    high: f64,
    step: f64,
    from: f64,
    to: f64,
}

impl Side {
    fn around(
        values: impl Iterator<Item = f64> + Clone,
        (from, to): (f64, f64),
        paper: Paper,
    ) -> Self {
        let least = values.clone().fold(f64::INFINITY, f64::min);
        let most = values.fold(f64::NEG_INFINITY, f64::max);
        match paper {
            Paper::Powers => {
                let low = least.floor();
                Self { low, high: most.ceil().max(low + 1.0), step: 1.0, from, to }
            }
            Paper::Even => {
                // Whole numbers, so that a mark is never longer than what it says.
                let step = round(most / LINES).max(1.0);
                Self { low: 0.0, high: (most / step).ceil().max(1.0) * step, step, from, to }
            }
        }
    }

    fn at(self, value: f64) -> f64 {
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    /// The values with a line, at most twenty.
    fn lines(self) -> impl Iterator<Item = f64> {
        (0..20_u32)
            .map(move |n| self.low + f64::from(n) * self.step)
            .take_while(move |value| *value <= self.high)
    }
}

/// The next of 1, 2, 5, 10, 20, …
fn round(step: f64) -> f64 {
    let power = 10_f64.powf(step.log10().floor());
    let rounded = [1.0, 2.0, 5.0].map(|digit| digit * power).into_iter().find(|one| *one >= step);
    rounded.unwrap_or(10.0 * power)
}

/// Draws it on the paper that fits.
pub(crate) fn draw(series: &Series) -> Plot {
    let paper = Paper::of(series);
    let points = paper.points(series);
    let Series { name, x, unit, .. } = series;
    let caption = format!("{name}: {unit} by {x}, {}", paper.sum_up(&points));
    let word = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let file = format!("{}.svg", name.chars().map(word).collect::<String>());
    Plot { file, svg: svg((&points, paper), (x, unit), &caption), caption }
}

/// The slope of the straight line nearest to the points.
#[expect(clippy::cast_precision_loss, reason = "a number of points")]
fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let count = points.len() as f64;
    let mean = |part: fn(&(f64, f64)) -> f64| points.iter().map(part).sum::<f64>() / count;
    let (mx, my) = (mean(|point| point.0), mean(|point| point.1));
    let across: f64 = points.iter().map(|(x, y)| (x - mx) * (y - my)).sum();
    let along: f64 = points.iter().map(|(x, _)| (x - mx).powi(2)).sum();
    (points.len() > 1 && along > 0.0).then(|| across / along)
}

fn svg((points, paper): (&[(f64, f64)], Paper), (x, unit): (&str, &str), caption: &str) -> String {
    let wide = Side::around(points.iter().map(|point| point.0), (LEFT, WIDTH - RIGHT), paper);
    let high = Side::around(points.iter().map(|point| point.1), (HEIGHT - BOTTOM, TOP), paper);
    let mut out = vec![
        format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">"#
        ),
        format!(r##"<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>"##),
        format!(r#"<text x="10" y="22" font-size="14">{}</text>"#, escape(caption)),
    ];
    if !points.is_empty() {
        out.extend(grid((wide, high), paper));
    }
    let places = points.iter().map(|(n, y)| (wide.at(*n), high.at(*y)));
    let path: Vec<String> = places.clone().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    out.push(format!(r##"<polyline points="{}" fill="none" stroke="#06c"/>"##, path.join(" ")));
    if paper == Paper::Powers {
        out.extend(
            places
                .map(|(x, y)| format!(r##"<circle cx="{x:.1}" cy="{y:.1}" r="3" fill="#06c"/>"##)),
        );
    }
    let (middle, low, half) = (WIDTH / 2.0, HEIGHT - 12.0, HEIGHT / 2.0);
    out.push(format!(r#"<text x="{middle}" y="{low}" text-anchor="middle">{}</text>"#, escape(x)));
    out.push(format!(
        r#"<text x="16" y="{half}" text-anchor="middle" transform="rotate(-90 16 {half})">{}</text>"#,
        escape(unit)
    ));
    out.push("</svg>\n".to_owned());
    out.join("\n")
}

/// Lines across, and what they count.
fn grid((wide, high): (Side, Side), paper: Paper) -> Vec<String> {
    let (top, bottom, below) = (TOP, HEIGHT - BOTTOM, HEIGHT - BOTTOM + 18.0);
    let (right, beside) = (WIDTH - RIGHT, LEFT - 8.0);
    let upright = wide.lines().map(|value| {
        format!(
            r##"<path d="M{0:.1} {top}V{bottom}" stroke="#ddd"/><text x="{0:.1}" y="{below}" text-anchor="middle">{1}</text>"##,
            wide.at(value),
            paper.mark(value)
        )
    });
    let level = high.lines().map(|value| {
        format!(
            r##"<path d="M{LEFT} {0:.1}H{right}" stroke="#ddd"/><text x="{beside}" y="{1:.1}" text-anchor="end">{2}</text>"##,
            high.at(value),
            high.at(value) + 4.0,
            paper.mark(value)
        )
    });
    upright.chain(level).collect()
}

fn power(log: f64) -> String {
    if (-3.0..=3.0).contains(&log) { format!("{}", 10_f64.powf(log)) } else { format!("1e{log}") }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
