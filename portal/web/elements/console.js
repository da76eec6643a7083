// The console: rows come in batches, the newest at the bottom. Bounded; filter, level and pause work in the browser.
const LEVELS = ["debug", "info", "status", "warning", "error"];
const WORDS = { debug: "debug", info: "info", status: "status", warning: "warn", error: "error" };
let serial = 0;

export default {
  template: `
    <div class="console">
      <div class="console-bar">
        <div class="field console-filter">
          <label class="sr-only" :for="id + '-filter'">Filter lines</label>
          <input class="control" :id="id + '-filter'" type="search" v-model="filter" placeholder="Filter lines" spellcheck="false" autocapitalize="off" />
        </div>
        <div class="field">
          <label class="sr-only" :for="id + '-level'">Level</label>
          <select class="control" :id="id + '-level'" v-model="level">
            <option value="">All levels</option>
            <option value="warning">Warnings and errors</option>
            <option value="error">Errors</option>
          </select>
        </div>
        <span class="console-count data" role="status">{{ count }}</span>
        <div class="console-acts">
          <button type="button" class="btn btn-small" :aria-pressed="paused ? 'true' : 'false'" @click="pause">{{ paused ? "Resume" : "Pause" }}</button>
          <button type="button" class="btn btn-small" @click="clear">Clear</button>
        </div>
      </div>
      <div ref="lines" class="console-lines data" role="log" aria-live="off" tabindex="0" :aria-label="label + ' lines'" @scroll.passive="scrolled">
        <div v-for="each in shown" :key="each.key" class="console-line" :class="'level-' + each.level">
          <span class="console-time">{{ each.clock }}</span>
          <span class="console-level">{{ each.word }}</span>
          <span v-if="nodes" class="console-node">{{ each.node }}</span>
          <span class="console-service">{{ each.service }}</span>
          <span class="console-text">{{ each.text }}</span>
        </div>
        <div v-if="!shown.length" class="console-none">{{ rows.length ? "No line matches the filter." : waiting }}</div>
      </div>
      <button v-if="!follows && !paused" type="button" class="btn btn-small console-jump" @click="jump">Jump to the newest line</button>
    </div>
  `,
  props: {
    id: String,
    label: { type: String, default: "Console" },
    nodes: Boolean,
    limit: { type: Number, default: 1000 },
    initial: { type: Array, default: () => [] },
    waiting: { type: String, default: "Waiting for the first line." },
  },
  data() {
    return {
      rows: this.initial.map(this.dress),
      held: [],
      newest: Math.max(-1, ...this.initial.map((each) => each.id)),
      filter: "",
      level: "",
      paused: false,
      follows: true,
    };
  },
  mounted() {
    this.jump();
  },
  computed: {
    shown() {
      const needle = this.filter.trim().toLowerCase();
      const least = LEVELS.indexOf(this.level);
      const words = (each) => `${each.node} ${each.service} ${each.word} ${each.text}`.toLowerCase();
      return this.rows.filter((each) => LEVELS.indexOf(each.level) >= least && (!needle || words(each).includes(needle)));
    },
    count() {
      if (this.paused) return `paused, ${this.held.length} new`;
      return this.shown.length === this.rows.length ? `${this.rows.length} lines` : `${this.shown.length} of ${this.rows.length} lines`;
    },
  },
  methods: {
    dress(line) {
      const level = LEVELS.includes(line.level) ? line.level : "info";
      const date = new Date(line.time * 1000);
      return { ...line, key: serial++, level, word: WORDS[level], clock: date.toLocaleTimeString([], { hour12: false }) };
    },
    append(lines) {
      const fresh = lines.filter((each) => each.id > this.newest).map(this.dress);
      if (!fresh.length) return;
      this.newest = fresh[fresh.length - 1].id;
      if (this.paused) {
        this.held.push(...fresh);
        if (this.held.length > this.limit) this.held.splice(0, this.held.length - this.limit);
        return;
      }
      this.take(fresh);
    },
    take(fresh) {
      this.rows.push(...fresh);
      if (this.rows.length > this.limit) this.rows.splice(0, this.rows.length - this.limit);
      if (this.follows) this.$nextTick(this.jump);
    },
    pause() {
      this.paused = !this.paused;
      if (!this.paused) {
        const held = this.held;
        this.held = [];
        this.take(held);
        this.$nextTick(this.jump);
      }
    },
    clear() {
      this.rows = [];
      this.held = [];
      this.follows = true;
    },
    scrolled(event) {
      const box = event.target;
      this.follows = box.scrollHeight - box.scrollTop - box.clientHeight < 24;
    },
    jump() {
      const box = this.$refs.lines;
      if (box) box.scrollTop = box.scrollHeight;
      this.follows = true;
    },
  },
};
