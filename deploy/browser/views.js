// The views of a picture, as grmp_edge/views.py and preprocess.py make them: the whole squashed by OpenCV's bicubic
// filter, and native crops.

const BITS = 11; // OpenCV's weights are integers of so many bits
const UNIT = 1 << BITS;

// As Python rounds: halves to the even neighbour.
const round = (value) => {
  const floor = Math.floor(value);
  const rest = value - floor;
  return rest < 0.5 || (rest === 0.5 && floor % 2 === 0) ? floor : floor + 1;
};

export const sigmoid = (logit) => 1 / (1 + Math.exp(-logit));

// The whole's logit, then those of the crops.
export function aggregate([first, ...crops], whole, native, shift) {
  const mean = crops.length ? crops.reduce((sum, one) => sum + one, 0) / crops.length : first;
  return whole * first + native * mean + shift;
}

// For each of `to` places the four weights, of which sum is UNIT, and the first of the four places they are of.
function taps(from, to) {
  const first = new Int32Array(to);
  const weights = new Int32Array(4 * to);
  const A = -0.75;
  const scale = from / to;
  for (let at = 0; at < to; at += 1) {
    const place = Math.fround((at + 0.5) * scale - 0.5);
    const floor = Math.floor(place);
    const x = Math.fround(place - floor);
    const own = [
      ((A * (x + 1) - 5 * A) * (x + 1) + 8 * A) * (x + 1) - 4 * A,
      ((A + 2) * x - (A + 3)) * x * x + 1,
      ((A + 2) * (1 - x) - (A + 3)) * (1 - x) * (1 - x) + 1,
    ].map(Math.fround);
    own.push(Math.fround(1 - own[0] - own[1] - own[2]));
    first[at] = floor - 1;
    own.forEach((weight, index) => { weights[4 * at + index] = round(weight * UNIT); });
  }
  return { first, weights };
}

// RGBA (width x height) to RGB (side x side), bicubic without antialiasing.
export function squash({ data, width, height }, side) {
  const across = taps(width, side);
  const down = taps(height, side);
  const inside = (at, length) => Math.min(Math.max(at, 0), length - 1);
  const rows = new Map(); // squashed across, by the row of the picture
  const row = (y) => {
    if (rows.has(y)) return rows.get(y);
    const line = new Int32Array(3 * side);
    for (let at = 0; at < side; at += 1) {
      for (let tap = 0; tap < 4; tap += 1) {
        const weight = across.weights[4 * at + tap];
        const from = 4 * (y * width + inside(across.first[at] + tap, width));
        for (let channel = 0; channel < 3; channel += 1) line[3 * at + channel] += weight * data[from + channel];
      }
    }
    rows.set(y, line);
    return line;
  };
  const out = new Uint8ClampedArray(3 * side * side);
  for (let at = 0; at < side; at += 1) {
    const lines = [0, 1, 2, 3].map((tap) => row(inside(down.first[at] + tap, height)));
    for (let x = 0; x < 3 * side; x += 1) {
      let sum = 0;
      for (let tap = 0; tap < 4; tap += 1) sum += down.weights[4 * at + tap] * lines[tap][x];
      out[3 * side * at + x] = round(sum / (UNIT * UNIT));
    }
    for (const y of rows.keys()) if (y < down.first[at]) rows.delete(y);
  }
  return out;
}

// Crops in the middles of the cells of the grid that suits the picture's shape; row by row, equal ones once.
export function spread(height, width, count, side) {
  if (!count) return [];
  const fit = (rows) => Math.abs(Math.log(height / rows / (width / (count / rows)))) - (rows * rows === count ? 1 : 0);
  let rows = 1;
  for (let more = 2; more <= count; more += 1) if (count % more === 0 && fit(more) < fit(rows)) rows = more;
  const columns = count / rows;
  const middle = (length, place) => Math.min(Math.max(round(place * length - side / 2), 0), Math.max(length - side, 0));
  const boxes = new Map();
  for (let row = 0; row < rows; row += 1) {
    for (let column = 0; column < columns; column += 1) {
      const box = {
        left: middle(width, (column + 0.5) / columns),
        top: middle(height, (row + 0.5) / rows),
        width: Math.min(side, width),
        height: Math.min(side, height),
      };
      boxes.set(`${box.left} ${box.top}`, box);
    }
  }
  return [...boxes.values()];
}

// The place that a place beyond the edge mirrors, the edge itself not repeated.
function mirror(at, length) {
  if (length === 1) return 0;
  const period = 2 * (length - 1);
  const within = ((at % period) + period) % period;
  return within < length ? within : period - within;
}

// RGBA to all views, uint8 (1 + crops, crop, crop, 3).
export function viewsOf(picture, resize, crop, native) {
  const { data, width, height } = picture;
  const boxes = spread(height, width, native, crop);
  const size = 3 * crop * crop;
  const pixels = new Uint8Array((1 + boxes.length) * size);
  const whole = squash(picture, resize);
  const start = Math.floor((resize - crop) / 2);
  for (let y = 0; y < crop; y += 1) {
    const from = 3 * ((start + y) * resize + start);
    pixels.set(whole.subarray(from, from + 3 * crop), 3 * crop * y);
  }
  boxes.forEach((box, index) => {
    const above = (crop - box.height) >> 1;
    const before = (crop - box.width) >> 1;
    let to = (1 + index) * size;
    for (let y = 0; y < crop; y += 1) {
      const line = width * (box.top + mirror(y - above, box.height));
      for (let x = 0; x < crop; x += 1) {
        const from = 4 * (line + box.left + mirror(x - before, box.width));
        pixels[to] = data[from];
        pixels[to + 1] = data[from + 1];
        pixels[to + 2] = data[from + 2];
        to += 3;
      }
    }
  });
  return { pixels, boxes };
}
