// One quantity over the last minutes: a readout, its unit, and the trace it left. No library, no animation.
export default {
  template: `
    <figure class="chart" :aria-label="summary" role="img">
      <figcaption class="chart-head">
        <span class="chart-label">{{ label }}</span>
        <span class="chart-value data">{{ shown }}<span v-if="last !== null" class="chart-unit">{{ unit }}</span></span>
      </figcaption>
      <svg class="chart-plot" viewBox="0 0 300 56" preserveAspectRatio="none" aria-hidden="true" @pointermove="point" @pointerleave="at = null">
        <line v-for="y in [0.5, 28, 55.5]" :key="y" x1="0" x2="300" :y1="y" :y2="y" class="chart-grid" vector-effect="non-scaling-stroke" />
        <path v-if="area" :d="area" class="chart-area" />
        <path v-if="trace" :d="trace" class="chart-trace" vector-effect="non-scaling-stroke" />
        <line v-if="at !== null" :x1="cross" :x2="cross" y1="0" y2="56" class="chart-cross" vector-effect="non-scaling-stroke" />
      </svg>
      <div class="chart-foot data"><span>{{ when }}</span><span>{{ scale }}</span></div>
    </figure>
  `,
  props: {
    label: String,
    unit: String,
    points: { type: Array, default: () => [] },
    top: Number,
    digits: { type: Number, default: 0 },
    window: { type: Number, default: 3600 },
  },
  data() {
    return { rows: this.points.slice(), at: null };
  },
  watch: {
    points(fresh) {
      this.rows = fresh.slice();
    },
  },
  computed: {
    last() {
      return this.rows.length ? this.rows[this.rows.length - 1] : null;
    },
    chosen() {
      return this.at === null ? this.last : this.rows[this.at];
    },
    shown() {
      return this.chosen ? this.chosen[1].toFixed(this.digits) : "–";
    },
    ceiling() {
      if (this.top) return this.top;
      const most = Math.max(1, ...this.rows.map((each) => each[1]));
      const size = 10 ** Math.floor(Math.log10(most));
      return Math.ceil(most / size) * size;
    },
    span() {
      if (!this.rows.length) return [0, 1];
      const end = this.last[0];
      return [Math.max(this.rows[0][0], end - this.window), end];
    },
    places() {
      const [from, to] = this.span;
      const width = Math.max(1, to - from);
      return this.rows.map(([time, value]) => [300 * ((time - from) / width), 55.5 - 55 * Math.min(1, Math.max(0, value / this.ceiling))]);
    },
    trace() {
      if (this.places.length === 1) return `M0 ${this.places[0][1]} H300`;
      return this.places.map(([x, y], index) => `${index ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
    },
    area() {
      if (this.places.length < 2) return "";
      return this.trace + `L300 56L${this.places[0][0].toFixed(1)} 56Z`;
    },
    cross() {
      return this.at === null ? 0 : this.places[this.at][0];
    },
    when() {
      if (!this.rows.length) return "no reading yet";
      if (this.at !== null) return new Date(this.chosen[0] * 1000).toLocaleTimeString([], { hour12: false });
      if (this.rows.length < 2) return "now";
      const seconds = this.span[1] - this.span[0];
      return seconds < 90 ? `last ${Math.max(1, Math.round(seconds))} s` : `last ${Math.round(seconds / 60)} min`;
    },
    scale() {
      return this.rows.length ? `0–${this.ceiling}${this.unit}` : "";
    },
    summary() {
      return this.last ? `${this.label}: ${this.last[1].toFixed(this.digits)}${this.unit}` : `${this.label}: no reading yet`;
    },
  },
  methods: {
    push(time, value) {
      if (this.last && time <= this.last[0]) return;
      this.rows.push([time, value]);
      const oldest = time - this.window;
      while (this.rows.length > 720 || this.rows[0][0] < oldest) this.rows.shift();
      this.at = null;
    },
    point(event) {
      if (this.rows.length < 2) return;
      const box = event.currentTarget.getBoundingClientRect();
      const x = (300 * (event.clientX - box.left)) / box.width;
      let best = 0;
      this.places.forEach((place, index) => {
        if (Math.abs(place[0] - x) < Math.abs(this.places[best][0] - x)) best = index;
      });
      this.at = best;
    },
  },
};
