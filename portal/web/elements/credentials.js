// Sign-in and set-up. The password goes straight to the REST API, which answers with an HttpOnly cookie; it never
// passes through the page's own socket.
export default {
  template: `
    <form class="stack" @submit.prevent="send" novalidate>
      <div v-for="each in fields" :key="each.name" class="field" :class="{ 'field-wrong': wrong === each.name }">
        <label class="field-label" :for="'credential-' + each.name">{{ each.label }}</label>
        <input class="control" :id="'credential-' + each.name" :name="each.name" :type="each.type" v-model="values[each.name]"
          :autocomplete="each.autocomplete" :aria-invalid="wrong === each.name" :aria-describedby="each.hint ? 'hint-' + each.name : null"
          :autofocus="each === fields[0]" autocapitalize="off" spellcheck="false" />
        <div v-if="each.hint" class="field-hint" :id="'hint-' + each.name">{{ each.hint }}</div>
      </div>
      <div v-if="problem" class="notice notice-fault" role="alert">{{ problem }}</div>
      <button type="submit" class="btn btn-primary btn-wide" :disabled="busy">{{ busy ? busyText : action }}</button>
    </form>
  `,
  props: { url: String, fields: Array, extra: Object, action: String, busyText: String, next: String },
  data() {
    return { values: Object.fromEntries(this.fields.map((each) => [each.name, each.value ?? ""])), problem: "", wrong: "", busy: false };
  },
  mounted() {
    this.$el.querySelector("input")?.focus();
  },
  methods: {
    async send() {
      const empty = this.fields.find((each) => !this.values[each.name].trim() && !each.optional);
      if (empty) return this.refuse(`${empty.label} is empty: fill it in.`, empty.name);
      const repeated = this.fields.find((each) => each.repeats && this.values[each.name] !== this.values[each.repeats]);
      if (repeated) return this.refuse("The two passwords are not the same: type them again.", repeated.name);
      this.busy = true;
      this.problem = this.wrong = "";
      const body = { ...this.extra };
      for (const each of this.fields) if (!each.repeats) body[each.name] = this.values[each.name];
      try {
        const answer = await fetch(this.url, {
          method: "POST",
          headers: { "Content-Type": "application/json", "X-Requested-With": "outstation" },
          body: JSON.stringify(body),
        });
        if (answer.ok) {
          location.assign(this.next);
          return;
        }
        const problem = await answer.json().catch(() => ({}));
        this.refuse(typeof problem.detail === "string" ? problem.detail : problem.title || `The portal answered ${answer.status}: try again.`, "");
      } catch {
        this.refuse("The portal did not answer: check that it runs and that this browser can reach it.", "");
      }
      this.busy = false;
    },
    refuse(problem, field) {
      this.problem = problem;
      this.wrong = field;
      if (field) this.$el.querySelector(`[name="${field}"]`).focus();
    },
  },
};
